"""The reward `judged_answer`: a judge's verdict on the answer of an episode."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

from hpt_trl.data.messages import text_of
from hpt_trl.errors import UserError
from hpt_trl.rewards.answer_texts import accepted
from hpt_trl.rewards.arguments import RewardArguments
from hpt_trl.rewards.columns import required, required_fact
from hpt_trl.rewards.configured import ConfiguredReward
from hpt_trl.rewards.judge.asking import Judge, Reply
from hpt_trl.rewards.judge.question import Question
from hpt_trl.rewards.judge.settings import JudgeSettings
from hpt_trl.rewards.judge.verdicts import Verdict, Verdicts, verdict_key

logger = logging.getLogger(__name__)

# Batches in a row that may fail as a whole before the run ends; the first one that is asked may not.
FAILING_BATCHES = 3


class JudgedAnswer(ConfiguredReward):
    """1.0 where the judge finds the answer of an episode right, else 0.0.

    An episode without an answer has 0.0 and is not asked about; a row without column `answer` has None. A question
    that failed has NaN, by which the trainers drop the rollout: a zero would say that the answer was wrong.

    Args:
        settings: Of the judge; None for one that has yet to be `configured`.
    """

    def __init__(self, settings: JudgeSettings | None = None) -> None:
        self.__name__ = "judged_answer"
        self.settings = settings
        self._judge: Judge | None = None
        self._verdicts = Verdicts(None if settings is None else settings.cache)
        self._answered = self._warned = False
        self._failing = 0

    def configured(self, arguments: RewardArguments) -> Self:
        """Returns the same reward with a recipe's keys; the judge is not called.

        Raises:
            UserError: no `judge_url` or `judge_model`, a value that cannot be used, or no key in the environment.
        """
        return type(self)(JudgeSettings.of(arguments))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        answer: Sequence[Any] | None = None,
        question: Sequence[str | None] | None = None,
        final_answer: Sequence[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Returns the verdict on each episode's answer.

        Args:
            question: What was asked; where the data has no such column it is the prompt's last message.

        Raises:
            UserError: no column `answer`, no episodes, no settings, a judge that is down, or a cache that cannot be
                used.
        """
        references = required(self.__name__, "answer", answer)
        given = required_fact(self.__name__, "final_answer", final_answer)
        asked = [None] * len(prompts) if question is None else question
        values: list[float | None] = []
        waiting: dict[int, Question] = {}
        for place, (wanted, said) in enumerate(zip(references, given, strict=True)):
            known = accepted(wanted)
            values.append(0.0 if known else None)
            if known and said is not None and said.strip():
                text = asked[place] or text_of(prompts[place])
                waiting[place] = Question(text.strip(), tuple(known), said.strip())
        verdicts = self._judged(list(waiting.values()), log_metric)
        for place, verdict in zip(waiting, verdicts, strict=True):
            values[place] = math.nan if verdict is None else float(verdict)
        return values

    def _judged(self, questions: list[Question], log_metric: Callable[[str, float], None] | None) -> list[bool | None]:
        if self.settings is None:
            raise UserError("reward_funcs: `judged_answer` asks a judge; name `judge_url` and `judge_model`.")
        prompts = [question.prompt(self.settings.template) for question in questions]
        keys = [verdict_key(self.settings.model, prompt) for prompt in prompts]
        known: dict[str, bool] = self._verdicts.find(keys)
        unknown = {key: place for place, key in enumerate(keys) if key not in known}
        if unknown:
            if self._judge is None:
                self._judge = Judge(self.settings)
            replies = dict(zip(unknown, self._judge.ask([prompts[place] for place in unknown.values()]), strict=True))
            answered = {
                key: Verdict(self.settings.model, questions[unknown[key]], reply.text, reply.right)
                for key, reply in replies.items()
                if reply.right is not None
            }
            self._verdicts.add(answered)
            known |= {key: verdict.right for key, verdict in answered.items()}
            self._look_at(list(replies.values()))
        found = [known.get(key) for key in keys]
        if log_metric is not None and found:
            log_metric("judge/unscored", found.count(None) / len(found))
            log_metric("judge/asked", len(unknown) / len(found))
        return found

    def _look_at(self, replies: list[Reply]) -> None:
        """Counts what failed, says it once, and ends the run where the judge is down."""
        assert self.settings is not None
        problems = Counter(reply.problem for reply in replies if reply.right is None)
        failed, count = problems.total(), len(replies)
        first = not self._answered
        self._answered |= failed < count
        self._failing = self._failing + 1 if failed == count else 0
        if not problems:
            return
        said = problems.most_common(1)[0][0] if len(problems) == 1 else _first_cause(replies)
        if self._failing and (first or self._failing >= FAILING_BATCHES):
            batches = "of the first batch" if first else f"of {self._failing} batches in a row"
            raise UserError(
                f"judged_answer: the judge at {self.settings.url} answered no question {batches}, the last "
                f"{count}: {said}. Look at `judge_url`, `judge_model`, the key and the service; a longer "
                "`judge_timeout` and more `judge_retries` bridge a slow one. A run that has saved checkpoints can be "
                "resumed."
            )
        if not self._warned:
            self._warned = True
            logger.warning(
                "judged_answer: %d of %d questions of a batch had no verdict: %s. Their rollouts are not trained on. "
                "This is said once; `judge/unscored` has the share.",
                failed,
                count,
                said,
            )


def _first_cause(replies: list[Reply]) -> str:
    """What failed first: those that were not asked at all say nothing."""
    return next(reply.problem for reply in replies if reply.problem)
