"""A toy world of small stories: text for a model from scratch, and a reward that is known exactly.

A pipeline that starts at random weights needs a corpus, demonstrations, solutions, comparisons and prompts that belong
together, and a true reward to say what each stage gained. Here a grammar of a few hundred words writes all of them in
no time, and where a corpus should be a bad one, a known share of its sentences is noise.
A quarter of the pairs of a hero and a thing is kept out of every training split, whatever its part and seed: a
held-out prompt asks for a pair that no stage of a chain has trained on.

The stories of the demonstrations are of mixed mood and care, so that there is something left to prefer. The true
reward, `score_story`, is 1 for a story about what was asked, told cheerfully in different words, with a happy end.
"""

import difflib
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from datasets import Dataset

from hpt_trl.data.story_grammar import (
    BOYS,
    CHEERFUL,
    CHEERFUL_PER_SENTENCE,
    CHEERFUL_WANTED,
    FAULTS,
    GIRLS,
    GLOOMY,
    THINGS,
    WORDS_LEAST,
    WORDS_MOST,
    Manner,
    any_manner,
    drawn_faults,
    tell,
)
from hpt_trl.errors import UserError

STORIES = "stories:"
PARTS = ("documents", "demonstrations", "solutions", "comparisons", "prompts")
# What `noise` may be at most, in the parts that have it.
_MOST_NOISE = {"documents": 1.0, "comparisons": math.inf}


_HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class StoriesOptions:
    """What `dataset_options` may hold for `stories:<part>`.

    `size` is 4000 by default, and for `prompts`, which are never repeated, all there are.
    `noise` of comparisons is the temperature of a Bradley-Terry judge: 0 always prefers the better story, a larger
    value sometimes the worse one, the more often the closer they are. `noise` of documents is a share: in place of so
    many of the training documents' sentences stand as many random words of the same vocabulary. The other sentences
    are those of `noise: 0`, and held-out documents have none.
    """

    size: int = 4000
    test_size: int = 128
    noise: float = 0.0
    seed: int = 0


def stories(part: str, options: dict[str, Any], *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Build one part of the toy world.

    - `documents`: text
    - `demonstrations`: prompt, completion, hero, thing
    - `solutions`: instruction, output, problem_id, is_correct, hero, thing; several of a problem, about half of them
      correct, i.e. a whole story about what was asked without a sentence twice
    - `comparisons`: prompt, chosen, rejected, hero, thing
    - `prompts`: prompt, hero, thing

    Args:
        part: one of `PARTS`.
        options: fields of `StoriesOptions`; `seed` in it comes before the argument.

    Returns:
        The training rows and the held-out rows (None for `test_size: 0`); only of documents and solutions more than
        one may be about the same held-out pair.

    Raises:
        UserError: an unknown part or option, or a value out of range.
    """
    if part not in PARTS:
        near = difflib.get_close_matches(part, PARTS, n=1)
        hint = f"did you mean `{STORIES}{near[0]}`? " if near else ""
        raise UserError(
            f"dataset_name: there are no `{STORIES}{part}`; {hint}Parts: {', '.join(STORIES + p for p in PARTS)}."
        )
    train, held_out = _pairs()
    default = {"size": len(train)} if part == "prompts" else {}
    checked = _options(part, {"seed": seed, **default, **options})
    if part == "prompts" and checked.size > len(train):
        raise UserError(
            f"dataset_options of {STORIES}prompts: `size: {checked.size}`, but there are {len(train)} different "
            "prompts for training; write at most that."
        )
    if part not in ("documents", "solutions") and checked.test_size > len(held_out):
        raise UserError(
            f"dataset_options of {STORIES}{part}: `test_size: {checked.test_size}`, but there are {len(held_out)} "
            "held-out prompts; write at most that."
        )
    rows = [
        _rows(part, pairs, count, checked.noise, random.Random(f"{checked.seed} {part} {split}"))
        for split, pairs, count in (("train", train, checked.size), ("test", held_out, checked.test_size))
    ]
    if part == "documents" and checked.noise > 0:
        rows[0] = _with_noise(rows[0], checked.noise, random.Random(f"{checked.seed} {part} noise"))
    return Dataset.from_list(rows[0]), Dataset.from_list(rows[1]) if rows[1] else None


def score_story(text: str, hero: str, thing: str) -> float:
    """Return the true reward of a story, from 0 to 1: faithful x form x (0.4 happy end + 0.6 cheerful).

    - faithful: half for the hero's name, half for the thing
    - form: halved for each of these: no full stop at the end, fewer than 16 or more than 45 words, a sentence twice
    - happy end: the last sentence has a cheerful word and no gloomy one
    - cheerful: different cheerful words, at most two of a sentence, up to five
    """
    sentences = [sentence for sentence in re.split(r"[.\n]+", text) if sentence.strip()]
    if not sentences:
        return 0.0
    words = [re.findall(r"[a-z]+", sentence.lower()) for sentence in sentences]
    count = sum(len(sentence) for sentence in words)
    told = {word for sentence in words for word in sentence}
    faithful = 0.5 * (hero.lower() in told) + 0.5 * (thing.lower() in told)
    faults = (
        not text.rstrip().endswith("."),
        not WORDS_LEAST <= count <= WORDS_MOST,
        len({tuple(sentence) for sentence in words}) < len(words),
    )
    cheerful: set[str] = set()
    for sentence in words:
        fresh = dict.fromkeys(word for word in sentence if word in CHEERFUL and word not in cheerful)
        cheerful.update(list(fresh)[:CHEERFUL_PER_SENTENCE])
    last = set(words[-1])
    happy_end = bool(last & CHEERFUL) and not last & GLOOMY
    mood = 0.4 * happy_end + 0.6 * min(len(cheerful), CHEERFUL_WANTED) / CHEERFUL_WANTED
    return round(faithful * 0.5 ** sum(faults) * mood, 6)


def _pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Every pair of a hero and a thing: those to train on, and those that are held out of every part."""
    pairs = [(hero, thing) for hero in [*GIRLS, *BOYS] for thing in THINGS]
    random.Random("hpt-trl stories").shuffle(pairs)
    held_out = round(_HELD_OUT_SHARE * len(pairs))
    return pairs[held_out:], pairs[:held_out]


def _rows(
    part: str, pairs: list[tuple[str, str]], count: int, noise: float, generator: random.Random
) -> list[dict[str, Any]]:
    return [_row(part, hero, thing, noise, generator) for hero, thing in _deal(pairs, count, generator)]


def _deal(pairs: list[tuple[str, str]], count: int, generator: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs in random order; one comes again only after all others."""
    for start in range(0, count, len(pairs)):
        yield from generator.sample(pairs, min(len(pairs), count - start))


def _row(part: str, hero: str, thing: str, noise: float, generator: random.Random) -> dict[str, Any]:
    if part == "documents":
        return {"text": _document(hero, thing, generator)}
    asked = f"Write a story about {hero} and a {thing}."
    if part == "solutions":
        manner = any_manner(generator)
        return {
            "instruction": asked,
            "output": tell(hero, thing, manner, generator),
            "problem_id": f"{hero} {thing}",
            "is_correct": not any(getattr(manner, fault) for fault in FAULTS),
            "hero": hero,
            "thing": thing,
        }
    row = {"prompt": f"{asked}\n", "hero": hero, "thing": thing}
    if part == "demonstrations":
        row["completion"] = tell(hero, thing, _demonstrated(generator), generator)
    if part == "comparisons":
        row["chosen"], row["rejected"] = _compared(hero, thing, noise, generator)
    return row


def _document(hero: str, thing: str, generator: random.Random) -> str:
    manner = Manner(
        *generator.choice([(0.2, 0.2), (0.6, 0.1), (0.1, 0.6)]),
        ending=generator.choice(["happy", "plain", "sad"]),
        middles=generator.randint(2, 6),
    )
    title = generator.choice(["", "", f"{hero} and the {thing}\n", f"A story about a {thing}\n"])
    return title + tell(hero, thing, manner, generator)


def _with_noise(rows: list[dict[str, Any]], share: float, generator: random.Random) -> list[dict[str, Any]]:
    """Documents with so many of their sentences, but no title, replaced by random words of all documents."""
    words = sorted({word for row in rows for word in re.findall(r"\w+", row["text"])})

    def sentence(match: re.Match[str]) -> str:
        if generator.random() >= share:
            return match.group()
        return " ".join(generator.choices(words, k=len(match.group().split()))) + "."

    return [{"text": re.sub(r"\b[^.\n]+\.", sentence, row["text"])} for row in rows]


def _demonstrated(generator: random.Random) -> Manner:
    ending = generator.choice(["happy", "happy", "plain", "sad"])
    cheerful, gloomy = {"happy": (0.5, 0.1), "plain": (0.25, 0.25), "sad": (0.15, 0.45)}[ending]
    return Manner(
        cheerful,
        gloomy,
        ending,
        middles=generator.choice([2, 3, 3]),
        forgets_hero=generator.random() < 0.05,
        forgets_thing=generator.random() < 0.05,
    )


def _compared(hero: str, thing: str, noise: float, generator: random.Random) -> tuple[str, str]:
    """Two answers of different worth, the preferred one first.

    Half of the pairs have one mood, so that faults decide: a reward model that has learnt the mood alone is soon
    talked into anything by a policy.
    """
    while True:
        one = any_manner(generator)
        other = replace(one, **drawn_faults(generator)) if generator.random() < 0.5 else any_manner(generator)
        first, second = (tell(hero, thing, manner, generator) for manner in (one, other))
        gap = score_story(first, hero, thing) - score_story(second, hero, thing)
        if gap:
            break
    p_first = float(gap > 0) if noise == 0 else 1 / (1 + math.exp(-gap / noise))
    return (first, second) if generator.random() < p_first else (second, first)


def _options(part: str, options: dict[str, Any]) -> StoriesOptions:
    source = f"dataset_options of {STORIES}{part}"
    known = [field.name for field in fields(StoriesOptions) if field.name != "noise" or part in _MOST_NOISE]
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise UserError(f"{source}: unknown option `{key}`; {hint}Known: {', '.join(known)}.")
        least = 1 if key == "size" else 0
        kinds = (int, float) if key == "noise" else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
            raise UserError(
                f"{source}: `{key}: {value}` must be a {'number' if key == 'noise' else 'whole number'} of at least "
                f"{least}."
            )
        if key == "noise" and value > _MOST_NOISE[part]:
            raise UserError(f"{source}: `noise: {value}` is a share of the sentences; write at most 1.")
    return StoriesOptions(**options)
