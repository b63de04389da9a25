"""The rewards `code_tests` and `all_code_tests`: a completion's program, run on the tests of its row."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from datasets import Dataset

from hpt_trl.data.messages import text_of
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError
from hpt_trl.rewards.arguments import RewardArguments
from hpt_trl.rewards.code.tasks import COLUMNS, TEST_COLUMNS, Task, task_of
from hpt_trl.rewards.configured import ConfiguredReward
from hpt_trl.rewards.sandbox.limits import Limits
from hpt_trl.rewards.sandbox.program import Program
from hpt_trl.rewards.sandbox.sandbox import Sandbox

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodeSettings:
    """How the programs of completions are run; the recipe's keys, see `RewardArguments`."""

    timeout: float = 10.0
    memory: int = 1024
    batch_timeout: float | None = 600.0
    workers: int | None = None
    unprotected: bool = False

    @classmethod
    def of(cls, arguments: RewardArguments) -> "CodeSettings":
        return cls(
            timeout=arguments.code_timeout,
            memory=arguments.code_memory,
            batch_timeout=arguments.code_batch_timeout,
            workers=arguments.code_workers,
            unprotected=arguments.run_untrusted_code_without_a_sandbox,
        )

    @property
    def limits(self) -> Limits:
        """The wall clock leaves room for a busy machine: the processor time decides."""
        return Limits(wall_seconds=2 * self.timeout, cpu_seconds=self.timeout, memory_mib=self.memory)


_Key = tuple[CodeSettings, Task, Program]
# Verdicts of the last batch: another reward of the same recipe asks about the same programs.
_last: dict[_Key, tuple[bool, ...] | None] = {}
# The rewards that have asked about it. To one that asks again it is another batch, with a time of its own.
_asked: set[str] = set()


class CodeReward(ConfiguredReward):
    """How many of the row's tests the program in a completion passes, from 0 to 1.

    The columns that make a row's tests are those of `hpt_trl.rewards.code.tasks`. A completion that could not be run
    because the whole batch had no time left has the value None.

    Args:
        name: what recipes call it.
        whole: 1.0 where all tests pass, else 0.0, in place of the share.
        settings: how programs are run.
    """

    def __init__(self, name: str, *, whole: bool, settings: CodeSettings | None = None) -> None:
        self.__name__ = name
        self.whole = whole
        self.settings = settings or CodeSettings()
        self._sandbox: Sandbox | None = None

    def configured(self, arguments: RewardArguments) -> Self:
        """The same reward with a recipe's keys.

        Raises:
            UserError: no sandbox can be set up.
        """
        reward = type(self)(self.__name__, whole=self.whole, settings=CodeSettings.of(arguments))
        reward.sandbox  # noqa: B018
        return reward

    @property
    def sandbox(self) -> Sandbox:
        """Where the programs run; found at the first use.

        Raises:
            UserError: no sandbox can be set up.
        """
        if self._sandbox is None:
            try:
                self._sandbox = Sandbox(self.settings.limits, unprotected=self.settings.unprotected)
            except UserError as error:
                raise UserError(f"reward_funcs: `{self.__name__}` runs programs of the model: {error}") from error
        return self._sandbox

    def check_columns(self, columns: Sequence[str], source: str) -> None:
        """Checks that there are columns with tests.

        Raises:
            UserError: there are none.
        """
        if not set(TEST_COLUMNS) & set(columns):
            raise UserError(
                f"reward_funcs: `{self.__name__}` reads tests from one of the columns {', '.join(TEST_COLUMNS)} "
                f"({source} has only {', '.join(columns)}). Name the column that holds them, e.g. column_mapping: "
                "{tests: assertions}"
            )

    def check_rows(self, rows: Dataset, source: str) -> None:
        """Checks that every row has tests that can be read.

        Raises:
            UserError: the first row that has none.
        """
        names = [name for name in COLUMNS if name in rows.column_names and name != ROW]
        for number, values in iterate_rows(rows, names, batch_size=50):
            task_of(dict(zip(names, values, strict=True)), where(source, number))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        tests: Sequence[Any] | None = None,
        test: Sequence[Any] | None = None,
        entry_point: Sequence[Any] | None = None,
        test_list: Sequence[Any] | None = None,
        test_setup_code: Sequence[Any] | None = None,
        test_imports: Sequence[Any] | None = None,
        public_tests: Sequence[Any] | None = None,
        private_tests: Sequence[Any] | None = None,
        generated_tests: Sequence[Any] | None = None,
        _row: Sequence[int] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Returns the share of the tests that each completion passes, or whether it passes all.

        Raises:
            UserError: a row has no tests, the data has no column with tests, or no sandbox can be set up.
        """
        columns: dict[str, Sequence[Any] | None] = {
            "tests": tests,
            "test": test,
            "entry_point": entry_point,
            "test_list": test_list,
            "test_setup_code": test_setup_code,
            "test_imports": test_imports,
            "public_tests": public_tests,
            "private_tests": private_tests,
            "generated_tests": generated_tests,
        }
        present = {name: values for name, values in columns.items() if values is not None}
        self.check_columns([*present], "the data")
        tasks = [
            task_of(
                {name: values[place] for name, values in present.items()},
                f"row {_row[place]}" if _row is not None else f"position {place + 1} of the batch",
            )
            for place in range(len(completions))
        ]
        texts = zip(completions, prompts, strict=True)
        programs = [
            task.program(text_of(completion), text_of(prompt))
            for task, (completion, prompt) in zip(tasks, texts, strict=True)
        ]
        return [self._value(verdicts) for verdicts in self._verdicts(tasks, programs)]

    def _value(self, verdicts: tuple[bool, ...] | None) -> float | None:
        if verdicts is None:
            return None
        return float(all(verdicts)) if self.whole else sum(verdicts) / len(verdicts)

    def _verdicts(self, tasks: list[Task], programs: list[Program]) -> list[tuple[bool, ...] | None]:
        """Of each program its tests; None where it was not run. What is asked twice is run once."""
        global _last
        asked = [(self.settings, *pair) for pair in zip(tasks, programs, strict=True)]
        if again := self.__name__ in _asked:
            _asked.clear()
        _asked.add(self.__name__)
        known = {key: _last[key] for key in asked if key in _last and not (again and _last[key] is None)}
        unknown = [key for key in dict.fromkeys(asked) if key not in known]
        wanted = self.settings
        programs, kept = [program for *_, program in unknown], [task.kept for _, task, _ in unknown]
        outcomes = self.sandbox.run_all(programs, wanted.workers, wanted.batch_timeout, kept)
        for key, outcome in zip(unknown, outcomes, strict=True):
            known[key] = None if outcome.status == "skipped" else key[1].verdicts(outcome)
        if skipped := sum(verdicts is None for verdicts in known.values()):
            logger.warning(
                "%s: %d of %d programs were not run, as all together took more than %g seconds (`code_batch_timeout`); "
                "they have no reward.",
                self.__name__,
                skipped,
                len(known),
                wanted.batch_timeout or 0,
            )
        _last = known
        return [known[key] for key in asked]
