"""An environment for tests, and trainers whose turns in it are fixed."""

import zlib
from typing import Any

import torch
from datasets import Dataset
from PIL import Image

from hpt_trl import HybridPostTrainer
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.protocol import Messages, Observation, Picture, Turn
from hpt_trl.rollouts.acting import ActingTrainer

# Shades that doors are painted in, by the number of the turn.
SHADES = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


class Doors:
    """Shows another door after each turn, until a turn says `out`.

    Args:
        pictures: whether doors are images, or texts.
        folds: whether they may be folded away.
    """

    tools: list[dict[str, Any]] = []

    def __init__(self, pictures: bool = True, folds: bool = True):
        self.pictures, self.folds = pictures, folds
        self.opened = 0

    def prompt(self, messages: Messages) -> Messages:
        return [{"role": "system", "content": "Open doors."}, *messages]

    def start(self, row: dict[str, Any]) -> None:
        self.kind = row["kind"]

    def act(self, turn: Turn) -> Observation | str:
        if "out" in turn.text:
            return "answer"
        self.opened += 1
        shade = SHADES[self.opened % len(SHADES)]
        door = Picture(Image.new("RGB", (32, 32), shade), f"door-{self.opened}")
        parts = ("A door:", door) if self.pictures else (f"A door of shade {shade}.",)
        return Observation(parts, folded=f"[door {self.opened}]" if self.folds else None)

    def facts(self) -> dict[str, Any]:
        return {"opened": self.opened}

    def measures(self) -> dict[str, float]:
        return {"doors/opened": float(self.opened)}


class FixedTurns:
    """Mixin for an `ActingTrainer` whose turns follow from rollout, turn and step alone, on any number of processes."""

    def _draw(self, episodes: list[Episode]) -> None:
        first = self.accelerator.process_index * len(self._episodes)
        places = {id(episode): place for place, episode in enumerate(self._episodes)}
        for episode in episodes:
            key = (first + places[id(episode)], episode.turns, self.state.global_step)
            generator = torch.Generator().manual_seed(zlib.crc32(str(key).encode()))
            length = int(torch.randint(2, 7, (), generator=generator))
            ids = torch.randint(3, 90, (length,), generator=generator).tolist()
            ids = [token for token in ids if token not in self._tokenizer.all_special_ids] or [50]
            if int(torch.randint(0, 8, (), generator=generator)):
                ids.append(self._tokenizer.eos_token_id)
            episode.take(ids)


class FixedActing(FixedTurns, ActingTrainer):
    pass


class FixedActedHPT(FixedTurns, HybridPostTrainer):
    pass


def turn_reward(completion_ids: list[list[int]], kind: list[str], opened: list[int], **_: Any) -> list[float]:
    """1 or 0: by the row's kind (`fail`, `solve`), else by the parity of the tokens."""
    fixed = {"fail": 0.0, "solve": 1.0}
    return [fixed.get(name, float(sum(ids) % 2)) for name, ids in zip(kind, completion_ids, strict=True)]


KINDS = ["fail", "mixed", "solve", "mixed"]


def door_rows(kinds: list[str] = KINDS) -> Dataset:
    """Rows with a trajectory each, of one to three turns."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Find the way, number {place}."}],
                "completion": [
                    {"role": "assistant", "content": text}
                    for text in [f"open {place}", f"open more {place}", f"out {place}"][2 - place % 3 :]
                ],
                "kind": kind,
            }
            for place, kind in enumerate(kinds)
        ]
    )
