"""Demonstrations in an environment: whole trajectories, played turn by turn as rollouts are.

The environment acts on the turns that were written, so what lies between them is what a rollout with these turns would
see: the same pages, folded away by the same rule.
"""

from collections.abc import Sequence
from typing import Any

from hpt_trl.environments.acting import Acting, named
from hpt_trl.environments.episode import Episode
from hpt_trl.errors import UserError
from hpt_trl.methods.hybrid.demonstrations import Demonstration, missing
from hpt_trl.methods.hybrid.grading import AsRollouts, Sampled


class ActedDemonstrations:
    """The trajectories of a process's rows of a generation batch, each played once and when it is asked for."""

    def __init__(self, rows: Sequence[dict[str, Any]], column: str, acting: Acting):
        self._rows, self._column, self._acting = rows, column, acting
        self._played: dict[int, Episode] = {}

    def episode(self, row: int) -> Episode:
        """A row's trajectory.

        Raises:
            UserError: it has none, or one that cannot be played.
        """
        if row not in self._played:
            example = self._rows[row]
            if not example.get(self._column):
                raise missing(example, self._column)
            try:
                self._played[row] = self._acting.demonstration(example, self._column)
            except UserError as error:
                raise named(error, example) from error
        return self._played[row]

    def __getitem__(self, row: int) -> Demonstration:
        episode = self.episode(row)
        flat = episode.flat
        cut = episode.ended == "context"
        return Demonstration(flat.completion_ids, flat.drawn, len(flat.prompt_ids), cut, episode.segments)

    def as_rollouts(self, sampled: Sampled) -> AsRollouts:
        """How these are handed to rewards: with the facts of their own episodes."""

        def handed(local: list[int], count: int) -> tuple[list[Any], list[Any], list[Any], list[list[int]]]:
            episodes = [self.episode(row) for row in local]
            inputs = [sampled.inputs[row] | episode.facts() for row, episode in zip(local, episodes, strict=True)]
            completions = [episode.completion() for episode in episodes]
            ids = [episode.flat.completion_ids for episode in episodes]
            fill = count - len(local)
            end = self._acting.encoder.encoder.end_ids[0]
            prompts = [sampled.prompts[row] for row in [*local, *[0] * fill]]
            inputs += [sampled.inputs[0]] * fill
            completions += [[{"role": "assistant", "content": ""}]] * fill
            return inputs, prompts, completions, [*ids, *[[end]] * fill]

        return handed
