"""The toy world: what is held out, what repeats, and what the true reward pays for."""

import pytest

from hpt_trl.data.stories import PARTS, score_story, stories
from hpt_trl.errors import UserError
from hpt_trl.rewards.functions import story_score

BEST = (
    "Mia had a red kite. Mia laughed with joy. The sun was bright. Tom was kind to Mia. "
    "Mia loved the kite. In the end Mia was happy."
)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_its_seeds(part):
    options = {"size": 50, "test_size": 20}
    train, test = stories(part, options, seed=0)
    again = stories(part, {**options, "seed": 0}, seed=9)
    assert train.to_list() == again[0].to_list() and test.to_list() == again[1].to_list()
    assert train.to_list() != stories(part, options, seed=1)[0].to_list()
    assert len(train) == 50 and len(test) == 20 and stories(part, {"test_size": 0, "size": 1}, seed=0)[1] is None


def test_held_out_prompts_are_new_to_every_part_and_seed():
    trained, held_out = set(), []
    for seed, part in enumerate(PARTS[1:]):
        train, test = stories(part, {"size": 700, "test_size": 200}, seed=seed)
        column = "instruction" if part == "solutions" else "prompt"
        trained |= {prompt.strip() for prompt in train[column]}
        held_out.append([prompt.strip() for prompt in test[column]])
    assert all(len(set(prompts)) == len(prompts) for prompts in held_out)
    assert not trained & {prompt for prompts in held_out for prompt in prompts}


def test_the_preferred_story_is_the_better_one_unless_the_judge_is_noisy():
    def gaps(noise):
        rows, _ = stories("comparisons", {"size": 200, "test_size": 0, "noise": noise}, seed=0)
        chosen, rejected = (story_score(rows[side], rows["hero"], rows["thing"]) for side in ("chosen", "rejected"))
        return [better - worse for better, worse in zip(chosen, rejected, strict=True)]

    assert min(gaps(0)) > 0
    noisy = gaps(0.2)
    assert 0.02 < sum(gap < 0 for gap in noisy) / len(noisy) < 0.4


def test_noise_takes_the_place_of_a_share_of_the_sentences_and_only_in_training():
    def sentences(noise):
        train, test = stories("documents", {"size": 300, "test_size": 20, "noise": noise}, seed=0)
        return [text.split(".") for text in train["text"]], test["text"]

    (clean, clean_test), (noisy, noisy_test) = sentences(0), sentences(0.3)
    assert noisy_test == clean_test
    pairs = [pair for one, other in zip(clean, noisy, strict=True) for pair in zip(one, other, strict=True)]
    changed = [(one.split(), other.split()) for one, other in pairs if one != other]
    count = sum(bool(one.strip()) for one, _ in pairs)
    assert len(changed) / count == pytest.approx(0.3, abs=0.04)
    # A title stays before its sentence.
    assert all(len(one) == len(other) for one, other in changed)
    known = {word.strip(",") for one, _ in pairs for word in one.split()}
    assert {word for _, other in changed for word in other} <= known
    assert len({tuple(other) for _, other in changed}) > 0.95 * len(changed)


def test_correct_solutions_are_whole_stories_about_what_was_asked():
    rows, _ = stories("solutions", {"size": 1536, "test_size": 0}, seed=0)
    assert 0.4 < sum(rows["is_correct"]) / len(rows) < 0.6
    assert sorted(rows["problem_id"]) == sorted([*set(rows["problem_id"])] * 2)
    for row in rows:
        if row["is_correct"]:
            told = row["output"].split(".")
            assert row["hero"] in row["output"] and row["thing"] in row["output"] and row["output"].endswith(".")
            assert len(set(told)) == len(told)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (BEST, 1.0),
        (BEST.replace("Mia", "Ann"), 0.5),  # who was asked about is not there
        (BEST.replace("Mia", "Ann").replace("kite", "ball"), 0.0),
        (BEST.replace("was happy", "was sad"), 0.6),  # no happy end
        (BEST.removesuffix("."), 0.5),  # cut off
        (BEST + " " + BEST, 0.5 * 0.5),  # too long, and every sentence twice
        ("Mia had a kite. Mia was happy.", 0.5 * (0.4 + 0.6 / 5)),  # too short
        # One word again and again counts once, a list of them twice.
        ("Mia had a kite and was happy, and happy, and happy, and happy in the end of the day.", 0.4 + 0.6 / 5),
        ("Mia had a kite in the garden by the river under a tree with joy fun love bright kind happy.", 0.4 + 0.24),
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_the_true_reward(text, score):
    assert score_story(text, "Mia", "kite") == pytest.approx(score)


def test_demonstrations_leave_something_to_prefer():
    rows, _ = stories("demonstrations", {"size": 500, "test_size": 0}, seed=0)
    scores = story_score(rows["completion"], rows["hero"], rows["thing"])
    assert 0.2 < sum(scores) / len(scores) < 0.5 and max(scores) > 0.8


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("demonstration", {}, "did you mean `stories:demonstrations`"),
        ("prompts", {"sizes": 3}, "unknown option `sizes`; did you mean `size`"),
        ("prompts", {"noise": 0.1}, "unknown option `noise`"),
        ("prompts", {"size": 769}, "768 different prompts"),
        ("prompts", {"test_size": 257}, "256 held-out prompts"),
        ("documents", {"noise": 1.5}, "`noise: 1.5` is a share of the sentences; write at most 1"),
        ("documents", {"size": 0}, "`size: 0` must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_made_is_refused(part, options, message):
    with pytest.raises(UserError, match=message):
        stories(part, options, seed=0)
