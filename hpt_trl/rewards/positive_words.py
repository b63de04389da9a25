"""The positive-words task: complete `I feel so` with a word of joy.

The smallest task on which PPO of a language model can be watched: a word list is the reward, ten tokens the episode.
"""

import re
from typing import Any

from hpt_trl.data.messages import text_of
from hpt_trl.rewards.completions import unlogged

WORDS = ("happy", "glad", "good", "great", "smile", "joy", "love")
_WORD = re.compile("|".join(WORDS), re.IGNORECASE)
# A progress report stands at the first generation batch (mostly the only one) of each tenth epoch.
REPORT_EVERY = 10


class PositiveWords:
    """Reward +1 where the completion holds one of `WORDS` (also inside of a word: `lovely`), else -1.

    While training it prints each find, and every ten epochs the success rate since the last report.

    Args:
        prints_finds: whether it does the first.
    """

    __name__ = "positive_words"

    def __init__(self, *, prints_finds: bool = True):
        self._prints_finds = prints_finds
        self._found = self._seen = self._reported = 0

    def __call__(
        self, prompts: list, completions: list, trainer_state: Any = None, log_metric: Any = None, **_: Any
    ) -> list[float]:
        rewards = []
        # The evaluation brings the trainer's state as well.
        training = trainer_state is not None and trainer_state.max_steps > 0 and log_metric is not unlogged
        for prompt, completion in zip(prompts, completions, strict=True):
            found = _WORD.search(text_of(completion))
            rewards.append(1.0 if found else -1.0)
            if found and training and self._prints_finds:
                print(f"found `{found[0].lower()}`: {text_of(prompt)}{text_of(completion)!r}", flush=True)
        if training:
            self._report(rewards, int(trainer_state.epoch or 0) + 1, trainer_state)
        return rewards

    def _report(self, rewards: list[float], epoch: int, state: Any) -> None:
        self._found += sum(reward > 0 for reward in rewards)
        self._seen += len(rewards)
        if epoch % REPORT_EVERY == 0 and epoch != self._reported:
            share = self._found / self._seen
            print(
                f"epoch {epoch} of {state.num_train_epochs}: {share:.1%} of the last {self._seen} completions hold a "
                "positive word",
                flush=True,
            )
            self._found, self._seen, self._reported = 0, 0, epoch


positive_words = PositiveWords()
