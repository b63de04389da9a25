"""Rollouts keep to their limits, fold older pictures away, and hold what the model read when it drew each token."""

import random
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.episode import LEAST_TURN, Episode
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.pieces import Context
from hpt_trl.environments.protocol import Observation
from hpt_trl.rollouts.contexts import Contexts
from tests.helpers.episodes import PROMPT, Scripted, encoder_of, episode_of, picture, turn_ids
from tests.helpers.qwen_vl import save_tiny_qwen_vl


@pytest.fixture(scope="module")
def encoders(vlm_path, tiny_model_path, tmp_path_factory) -> dict[str, Encoder]:
    qwen = save_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen-vl")
    return {"text": encoder_of(tiny_model_path), "idefics3": encoder_of(vlm_path), "qwen": encoder_of(qwen)}


def page(number: int, folded: str | None = "", count: int = 1) -> Observation:
    """Pictures, folded away as `[n]`."""
    shown = tuple(picture(32, 32, number * 3 + place, f"page_{number}") for place in range(count))
    return Observation((*shown, f"page {number}"), folded=f"[{number}]" if folded == "" else folded)


# Each limit.


def test_the_last_turn_ends_a_rollout(encoders):
    episode = episode_of(encoders["text"], [Observation(("More?",))] * 5, max_turns=3)
    for number in range(3):
        assert episode.pending
        episode.take(turn_ids(encoders["text"], f"turn {number}"))
    assert (episode.ended, episode.turns) == ("turns", 3)
    assert [turn.last for turn in episode.environment.turns] == [False, False, True]
    # What follows the last turn is not shown.
    assert [turn["role"] for turn in episode.record] == ["assistant", "environment"] * 2 + ["assistant"]


def test_tokens_of_all_turns_are_bounded(encoders):
    encoder = encoders["text"]
    episode = episode_of(encoder, [Observation(("More?",))] * 9, drawn=50)
    spoken = turn_ids(encoder, "7" * 19)
    assert episode.budget == 50 and len(spoken) == 20
    episode.take(spoken)
    assert episode.budget == 30
    # 10 are left, and a turn of fewer than 16 is not begun.
    episode.take(spoken)
    assert (episode.ended, episode.drawn) == ("tokens", 40)
    assert episode.environment.hidden == 1


def test_a_turn_is_cut_at_its_length(encoders):
    encoder = encoders["text"]
    episode = episode_of(encoder, [Observation(("More?",))], drawn=100, max_turn_length=5)
    assert episode.budget == 5
    episode.take(turn_ids(encoder, "7" * 20))
    assert (episode.ended, episode.drawn) == ("tokens", 5)
    assert episode.environment.turns[0].cut and episode.environment.turns[0].text == "7" * 5


def test_a_turn_that_ends_at_its_length_is_whole(encoders):
    encoder = encoders["text"]
    episode = episode_of(encoder, [Observation(("More?",))], max_turn_length=5)
    episode.take(turn_ids(encoder, "7777"))
    assert episode.pending and not episode.environment.turns[0].cut


def test_a_turn_without_an_end_is_cut(encoders):
    episode = episode_of(encoders["text"], [Observation(("More?",))])
    episode.take(encoders["text"].ids("no end"))
    assert episode.ended == "tokens" and episode.environment.turns[0].cut


@pytest.mark.parametrize("room", [0, 1, 15, 16, 17])
def test_what_has_no_room_in_the_context_is_not_shown(encoders, room):
    encoder, shown = encoders["idefics3"], page(1)
    whole = episode_of(encoder, [shown])
    whole.take(turn_ids(encoder, "go"))
    length = len(whole.context().ids)
    episode = episode_of(encoder, [shown], max_context_length=length + room)
    episode.take(turn_ids(encoder, "go"))
    if room < LEAST_TURN:
        assert (episode.ended, episode.environment.hidden) == ("context", 1)
        assert [turn["role"] for turn in episode.record] == ["assistant"]
        assert episode.facts() == {"hidden": 1, "turns": 1, "ended": "context"}
    else:
        assert episode.pending and not episode.environment.hidden
        assert episode.budget == room and episode.context().ids == whole.context().ids


@pytest.mark.parametrize("limits", [{"max_context_length": 40}, {"positions": 40}])
def test_a_prompt_without_room_ends_a_rollout_before_its_first_turn(encoders, limits):
    encoder = encoders["text"]
    row = {"prompt": [{"role": "user", "content": "9" * 30}]}
    episode = episode_of(encoder, [], row, **limits)
    assert (episode.ended, episode.turns, episode.drawn) == ("context", 0, 0)
    # What has no room is not read in training either.
    [segment] = episode.segments
    assert len(segment) == 2 and segment.ids.dtype == torch.long and not segment.drawn.any()
    assert (episode.flat.completion_ids, episode.flat.drawn) == ([encoder.end_ids[0]], [0])
    assert episode.completion() == [] and episode.logps == [0.0]
    # Beside a rollout that was begun it does not change the batch.
    begun = episode_of(encoder)
    begun.take(turn_ids(encoder, "go"))
    contexts = Contexts.of([episode.segments, begun.segments], encoder.tokenizer.pad_token_id, torch.device("cpu"))
    assert contexts.arguments["input_ids"].dtype == torch.long
    assert contexts.arguments["input_ids"][1].tolist() == begun.segments[0].ids.tolist()
    assert contexts.rows.tolist() == [1] * begun.drawn


def test_an_empty_turn_ends_a_rollout(encoders):
    episode = episode_of(encoders["text"], [Observation(("More?",))])
    episode.take([])
    assert (episode.ended, episode.turns, episode.drawn) == ("tokens", 1, 0)
    assert episode.environment.turns[0].cut and episode.environment.turns[0].text == ""
    assert [segment.ids.tolist() for segment in episode.segments] == [episode.prompt.ids]


def test_a_turn_of_its_end_alone_is_a_turn(encoders):
    episode = episode_of(encoders["text"], [Observation(("More?",))])
    episode.take([encoders["text"].end_ids[0]])
    assert episode.pending and (episode.turns, episode.drawn) == (1, 1)
    assert episode.environment.turns[0].text == "" and not episode.environment.turns[0].cut


@pytest.mark.parametrize("family", ["idefics3", "qwen"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_drawn_image_token_ends_a_turn_before_it(encoders, family, place):
    encoder = encoders[family]
    for image in episode_of(encoder).encoder.image_ids:
        episode = episode_of(encoder, [page(1)] * 2)
        episode.take(turn_ids(encoder, "go"))
        spoken = turn_ids(encoder, "7777")
        episode.take([*spoken[:place], image, *spoken[place:]], [-0.5] * 6)
        assert episode.ended == "tokens" and episode.environment.turns[1].text == "7" * place
        [segment] = episode.segments
        assert segment.images == 1
        drawn = segment.ids[segment.drawn.bool()].tolist()
        assert drawn == [*turn_ids(encoder, "go"), *spoken[:place]]


def test_limits_below_one_are_refused():
    for name in ("max_turns", "max_turn_length", "max_context_length", "max_images"):
        with pytest.raises(ValueError, match=f"`{name}` is 0"):
            TurnEnvironments(lambda: Scripted([]), **{name: 0})


# Folding.


def test_older_pictures_are_replaced_by_their_text(encoders):
    encoder = encoders["idefics3"]
    episode = episode_of(encoder, [page(number) for number in range(1, 6)], max_images=2)
    texts = []
    for number in range(5):
        episode.take(turn_ids(encoder, f"turn {number}"))
        texts.append(encoder.tokenizer.decode(episode.context().ids))
    shown = [re.findall(r"page (\d)", text) for text in texts]
    folded = [re.findall(r"\[(\d)\]", text) for text in texts]
    assert shown == [["1"], ["1", "2"], ["2", "3"], ["3", "4"], ["4", "5"]]
    assert folded == [[], [], ["1"], ["1", "2"], ["1", "2", "3"]]
    assert [text.count("turn") for text in texts] == [1, 2, 3, 4, 5]
    assert episode.context().images == 2
    # What was said and shown is kept for rewards and pages.
    assert [turn["text"] for turn in episode.record if turn["role"] == "environment"] == [
        f"<page>page {number}" for number in range(1, 6)
    ]


def test_pictures_of_the_kept_stay_and_those_of_prompts(encoders):
    encoder = encoders["idefics3"]
    row = {"prompt": PROMPT, "images": [picture(32, 32).image]}
    episode = episode_of(encoder, [page(1, folded=None), page(2), page(3)], row, max_images=2)
    for number in range(3):
        episode.take(turn_ids(encoder, f"turn {number}"))
    text = encoder.tokenizer.decode(episode.context().ids)
    assert "page 1" in text and "[2]" in text and "page 3" in text
    assert episode.context().images == 3


def test_more_pictures_at_once_than_the_limit_are_all_shown(encoders):
    encoder = encoders["idefics3"]
    episode = episode_of(encoder, [page(1), page(2, count=3), page(3)], max_images=2)
    counts = []
    for number in range(3):
        episode.take(turn_ids(encoder, f"turn {number}"))
        counts.append(episode.context().images)
    assert counts == [1, 3, 1]


def test_what_is_not_shown_folds_nothing(encoders):
    encoder = encoders["idefics3"]
    first = episode_of(encoder, [page(1)])
    first.take(turn_ids(encoder, "go"))
    # Room for a turn behind the first page, and for nothing else.
    room = len(first.context().ids) + LEAST_TURN
    long = Observation((picture(32, 32), "9" * 200), folded="[2]")
    episode = episode_of(encoder, [page(1), long], max_images=1, max_context_length=room)
    episode.take(turn_ids(encoder, "go"))
    before = episode.context().ids
    spoken = turn_ids(encoder, "on")
    episode.take(spoken)
    assert (episode.ended, episode.environment.hidden) == ("context", 1)
    [segment] = episode.segments
    assert segment.ids.tolist() == before + spoken and segment.images == 1


# All of them at once.


@dataclass
class Read:
    """A context before a turn, and what was drawn in it."""

    context: Context
    drawn: list[int]


def random_observation(generator: random.Random, number: int, images: bool) -> Observation | str:
    if generator.random() < 0.04:
        return "answer"
    text = generator.choice(["12 + 7?", "9" * generator.randint(1, 60), "", "<|im_end|> and <image>", "a\n\n b"])
    folded = generator.choice([f"[{number}]", f"[{number}]", "", None])
    if images and generator.random() < 0.7:
        shown = page(number, folded, generator.choice([1, 1, 1, 2]))
        return Observation((*shown.parts[:-1], text), folded=folded)
    return Observation((text,), folded=folded)


def random_turn(generator: random.Random, episode: Episode) -> list[int]:
    encoder = episode.encoder.encoder
    length = (
        generator.choice([0, 1, 3, 8, 15, 16, 17, 40, 400]) if generator.random() < 0.3 else generator.randint(1, 9)
    )
    plain = [token for token in range(3, 250) if token not in encoder.tokenizer.all_special_ids]
    ids = [generator.choice(plain) for _ in range(length)]
    if episode.encoder.image_ids and generator.random() < 0.03:
        ids.insert(generator.randint(0, len(ids)), min(episode.encoder.image_ids))
    if generator.random() < 0.98:
        ids.append(encoder.end_ids[0])
    return ids


def random_episode(encoder: Encoder, generator: random.Random) -> tuple[Episode, list[Read]]:
    """A rollout that is played to its end, held to its limits on the way."""
    images = encoder.is_processor
    limits = {
        "max_turns": generator.randint(1, 9),
        "max_turn_length": generator.choice([None, None, 3, 8, 40]),
        "max_context_length": generator.choice([None, None, 60, 150, 300, 800]),
        "max_images": generator.choice([None, 1, 2, 3]),
    }
    drawn = generator.choice([4, 20, 60, 300, 2000])
    row: dict[str, Any] = {"prompt": PROMPT}
    if images and generator.random() < 0.2:
        row["images"] = [picture(32, 32).image]
    shown = [random_observation(generator, number, images) for number in range(12)]
    episode = episode_of(encoder, shown, row, drawn=drawn, **limits)
    most = limits["max_context_length"] or 1 << 30
    read: list[Read] = []
    while episode.pending:
        context, before, budget = episode.context(), episode.drawn, episode.budget
        assert min(LEAST_TURN, limits["max_turn_length"] or drawn, drawn) <= budget
        assert budget <= drawn - before and budget <= (limits["max_turn_length"] or drawn)
        assert len(context.ids) + budget <= most
        assert sum(token in episode.encoder.image_ids for token in context.ids) % max(context.images, 1) == 0
        assert len(context.features) <= context.images
        turn = random_turn(generator, episode)
        episode.take(turn, [-float(place) - 1 for place in range(len(turn))])
        took = episode.drawn - before
        assert took <= budget and turn[:took] == turn[:budget][:took]
        read.append(Read(context, turn[:took]))
        assert episode.turns == len(read) <= limits["max_turns"]
        # The newest and those that cannot be folded may be more than the limit.
        if limits["max_images"] is not None and episode.pending:
            newest = shown[len(read) - 1]
            fixed = len(row.get("images", []))
            fixed += sum(len(one.pictures) for one in shown[: len(read)] if one.folded is None)
            assert episode.context().images <= max(limits["max_images"], len(newest.pictures)) + fixed
    return episode, read


def check_segments(episode: Episode, read: list[Read]) -> None:
    """Each turn stands in one segment, behind exactly what was read when it was drawn; nothing else has a loss."""
    segments = episode.segments
    if not read:
        assert episode.ended == "context" and [len(segment) for segment in segments] == [2]
        return
    masks = [torch.zeros(len(segment), dtype=torch.long) for segment in segments]
    place = 0
    for turn in read:
        if not turn.drawn:
            continue
        start, stop = len(turn.context.ids), len(turn.context.ids) + len(turn.drawn)
        wanted = turn.context.ids + turn.drawn
        if segments[place].ids[:stop].tolist() != wanted:
            place += 1
            assert segments[place].ids[:stop].tolist() == wanted
        features = segments[place].features[: len(turn.context.features)]
        assert all(ours is theirs for ours, theirs in zip(features, turn.context.features, strict=True))
        assert turn.context.types is None or segments[place].types[:start].tolist() == turn.context.types
        assert not masks[place][start:stop].any()
        masks[place][start:stop] = 1
    assert place == len(segments) - 1
    for segment, mask in zip(segments, masks, strict=True):
        assert torch.equal(segment.drawn, mask)
        # Nothing is read behind the last turn.
        assert mask[-1] or (segment is segments[-1] and not read[-1].drawn)
        assert segment.images == sum(_count(features) for features in segment.features)
    flat, logps = episode.flat, episode.logps
    ids = [token for segment in segments for token in segment.ids.tolist()]
    assert flat.prompt_ids == episode.prompt.ids
    assert flat.completion_ids == (ids[len(flat.prompt_ids) :] or [episode.encoder.encoder.end_ids[0]])
    assert len(flat.completion_ids) == len(flat.drawn) == len(logps)
    assert sum(flat.drawn) == episode.drawn == sum(len(turn.drawn) for turn in read)
    expected = [-float(number) - 1 for turn in read for number in range(len(turn.drawn))]
    assert [value for value, own in zip(logps, flat.drawn, strict=True) if own] == expected
    assert all(value == 0.0 for value, own in zip(logps, flat.drawn, strict=True) if not own)


def _count(features: dict[str, Any]) -> int:
    return len(features["image_grid_thw"]) if "image_grid_thw" in features else features["pixel_values"].shape[1]


@pytest.mark.parametrize("family", ["text", "idefics3", "qwen"])
def test_rollouts_of_any_turns_keep_their_limits_and_what_was_read(encoders, family):
    endings, several = set(), 0
    for seed in range(300):
        episode, read = random_episode(encoders[family], random.Random(f"{family} {seed}"))
        check_segments(episode, read)
        endings.add(episode.ended)
        several += len(episode.segments) > 1
    assert endings == {"answer", "turns", "tokens", "context"}
    assert family == "text" or several > 20
