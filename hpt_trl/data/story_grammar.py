"""The grammar of the small stories: their words, how a story is told, and the telling."""

import random
from dataclasses import dataclass
from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words("Mia Anna Lily Zoe Ruby Nora Ella Clara Rosa Ivy Maya Tess Emma Jane Lena Kate")
BOYS = _words("Tom Ben Sam Leo Max Jack Finn Hugo Paul Otto Adam Carl Noah Luke Theo Dan")
THINGS = _words(
    "kite ball boat drum doll lamp book hat cake bell bike cup key map rose shell stone flute scarf clock basket "
    "ladder pencil mirror ring sled coat box puppet whistle button wagon"
)

# A cheerful word counts once, and no sentence counts for more than two of them: a list of such words is no story.
CHEERFUL = frozenset(
    _words("happy glad joy fun bright kind loved smiled laughed sang danced hugged proud merry wonderful lucky")
)
GLOOMY = frozenset(_words("sad cried lost broke alone dark cold angry afraid tears rain hurt"))
CHEERFUL_WANTED = 5
CHEERFUL_PER_SENTENCE = 2
WORDS_LEAST, WORDS_MOST = 16, 45

_SLOTS = {
    "color": _words("red blue green yellow white black"),
    "size": _words("big small old new tiny heavy"),
    "day": _words("morning evening day night"),
    "season": _words("spring summer autumn winter"),
    "where": ["in the garden", "by the river", "under a tree", "on the hill", "at the market", "near the school"],
    "to": ["to the park", "to the lake", "to the farm", "to the town", "into the woods", "up the road"],
    "animal": _words("dog cat bird horse duck rabbit"),
    "relative": _words("mother father sister brother uncle"),
}
_OPENINGS = (
    "{hero} had a {color} {thing}.",
    "One {day} {hero} found a {thing} {where}.",
    "{hero} got a {size} {thing} from {his} {relative}.",
    "In the {season} {hero} made a {thing}.",
    "There was a {thing} {where}, and {hero} saw it.",
    "{hero} wanted a {color} {thing} for a long time.",
)
_PLAIN = (
    "{hero} took the {thing} {to}.",
    "{friend} came along and saw {hero}.",
    "{friend} asked {hero} about the {thing}.",
    "Then they went {to}.",
    "{hero} put the {thing} in a bag.",
    "A {animal} looked at the {thing}.",
    "It was a {size} {thing}.",
    "{His} {relative} was {where}.",
    "{hero} and {friend} sat {where}.",
)
_CHEERFUL = (
    "The sun was bright.",
    "{hero} laughed with joy.",
    "{friend} was kind to {hero}.",
    "{hero} and {friend} danced.",
    "A {animal} sang for {hero}.",
    "It was so much fun.",
    "{hero} loved the {thing}.",
    "{hero} smiled at {friend}.",
    "{hero} hugged {his} {relative}.",
    "They sang a merry song.",
    "What a wonderful {thing} it was.",
    "{hero} was proud of the {thing}.",
    "{friend} was glad to see {hero}.",
    "{hero} felt very lucky.",
)
_GLOOMY = (
    "Then the {thing} broke.",
    "{hero} cried.",
    "It was dark and cold.",
    "{friend} was angry with {hero}.",
    "{hero} lost the {thing} {where}.",
    "Then the rain came.",
    "{hero} was afraid of the {animal}.",
    "{friend} was hurt.",
)
_ENDINGS = {
    "happy": (
        "In the end {hero} was happy.",
        "{hero} and {friend} laughed all the way home.",
        "So {hero} went home glad.",
        "It was a wonderful day.",
        "And they were all merry.",
    ),
    "plain": (
        "Then {hero} went home.",
        "Then it was time for bed.",
        "The {thing} is still {where}.",
        "And that was the {day}.",
    ),
    "sad": (
        "In the end {hero} was sad.",
        "So {hero} went home alone.",
        "And the {thing} was lost.",
        "There were only tears.",
    ),
}


# What a careless teller does, and how often.
FAULTS = {"forgets_hero": 0.2, "forgets_thing": 0.15, "repeats": 0.2, "stops_early": 0.1}


@dataclass(frozen=True)
class Manner:
    """How a story is told: what its middle sentences and its end are drawn from, and what its teller forgets."""

    cheerful: float
    gloomy: float
    ending: str
    middles: int
    forgets_hero: bool = False
    forgets_thing: bool = False
    repeats: bool = False
    stops_early: bool = False


def any_manner(generator: random.Random) -> Manner:
    """A manner of answering from careless to perfect, every fault that the true reward knows included."""
    cheerful = generator.random()
    return Manner(
        cheerful,
        gloomy=(1 - cheerful) * generator.random(),
        ending=generator.choice(["happy", "plain", "sad"]),
        middles=generator.choice([2, 3, 3, 4]),
        **drawn_faults(generator),
    )


def drawn_faults(generator: random.Random) -> dict[str, Any]:
    return {fault: generator.random() < share for fault, share in FAULTS.items()}


def tell(hero: str, thing: str, manner: Manner, generator: random.Random) -> str:
    # Who forgets what was asked tells of something else.
    if manner.forgets_hero:
        hero = generator.choice([name for name in [*GIRLS, *BOYS] if name != hero])
    if manner.forgets_thing:
        thing = generator.choice([name for name in THINGS if name != thing])
    friend = generator.choice([name for name in [*GIRLS, *BOYS] if name != hero])
    he, him, his = ("she", "her", "her") if hero in GIRLS else ("he", "him", "his")
    known = {"hero": hero, "thing": thing, "friend": friend, "him": him, "his": his}
    known |= {"He": he.capitalize(), "His": his.capitalize()}
    left = [list(_CHEERFUL), list(_GLOOMY), list(_PLAIN)]
    templates = [generator.choice(_OPENINGS)]
    weights = (manner.cheerful, manner.gloomy, 1 - manner.cheerful - manner.gloomy)
    for _ in range(manner.middles):
        (kind,) = generator.choices(left, weights)
        templates.append(kind.pop(generator.randrange(len(kind))))
    templates.append(generator.choice(_ENDINGS[manner.ending]))
    sentences = [
        template.format(**known, **{slot: generator.choice(values) for slot, values in _SLOTS.items()})
        for template in templates
    ]
    if manner.repeats:
        middles = range(1, len(sentences) - 1)
        told, again = generator.sample(middles, 2)
        for place in middles:
            if place == again or generator.random() < 0.5:
                sentences[place] = sentences[told]
    text = " ".join(sentences)
    return " ".join(text.split()[: -generator.randint(2, 5)]) if manner.stops_early else text
