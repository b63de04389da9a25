"""What came of a run that was stopped: a user resumes it, does what an error says, and compares with the whole run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpt_trl.reading import read_steps
from tests.faults.outcomes import differing, outcome
from tests.faults.runs import Ended

# What is right: the same as without the fault, or told.
IDENTICAL, FELL_BACK, RESTARTED, REFUSED, HARMLESS = "identical", "fell back", "restarted", "refused", "harmless"
TOLD = "told"
RIGHT = (IDENTICAL, FELL_BACK, RESTARTED, REFUSED, TOLD, HARMLESS)
# What is wrong: other results without a word, and ends that leave the user alone.
DIVERGED, ACCEPTED, TRACEBACK, HUNG, LOST = "diverged", "accepted damaged", "traceback", "hung", "lost"
DEAD_END, UNTOLD, ACCEPTED_CHANGE = "dead end", "refused without a way on", "accepted change"
RECORDS = "other records"
# The same run fails without any fault.
BROKEN = "broken"
# Other results without a word, and the rest.
SILENT = (DIVERGED, ACCEPTED, ACCEPTED_CHANGE, RECORDS)
WRONG = (*SILENT, TRACEBACK, HUNG, LOST, DEAD_END, UNTOLD, BROKEN)
_RECORDS = ("metrics.jsonl", "results.json")
# The fault did not come to pass: a run that was over before it was to be killed.
MISSED = "missed"

RESUME = ("--resume_from_checkpoint", "true")
_ATTEMPTS = 4


# Runs a recipe with further words; returns how it ended, and from which step it went on, None where it did not end.
Run = Callable[[Sequence[str]], tuple[Ended, int | None]]


@dataclass
class Verdict:
    """What came of a fault.

    Attributes:
        word: one of `RIGHT`, `WRONG` or `MISSED`.
        said: the last error, shortened.
        tried: words of the commands after the fault, but for command and recipe.
        differs: names of what is not as in the whole run.
        went_on_from: step from which the run that finished went on.
        newest: step of the last whole checkpoint that the fault left.
    """

    word: str
    said: str = ""
    tried: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    went_on_from: int | None = None
    newest: int | None = None

    def record(self) -> dict[str, Any]:
        """Its fields as a line of the records has them."""
        return asdict(self)


def after_kill(
    run: Run,
    folder: Path,
    reference: dict[str, str],
    *,
    first: Sequence[str] = RESUME,
    newest: int | None = None,
) -> Verdict:
    """Goes on with a run that was stopped, as a user does, and judges what comes of it.

    Args:
        run: runs the recipe with further words; returns how it ended, and from which step it went on.
        folder: the folder of the run, with its output folder `out`.
        reference: the outcome of the whole run.
        first: words of the first command.
        newest: step of the last whole checkpoint before the fault; None to look which is there.
    """
    out, words = folder / "out", list(first)
    kept = kept_models(out)
    verdict = Verdict("", newest=newest_whole(out, reference) if newest is None else newest)
    while True:
        verdict.tried.append(" ".join(words))
        ended, verdict.went_on_from = run(words)
        wrong = fault_of(ended)
        if wrong is not None:
            verdict.word, verdict.said = wrong, last_words(ended.said)
            return verdict
        if ended.code == 0:
            break
        verdict.said = error_of(ended.said)
        if len(verdict.tried) == _ATTEMPTS:
            verdict.word = DEAD_END
            return verdict
        following = advised(verdict.said, words, verdict.tried, folder)
        if following is None:
            verdict.word = DEAD_END if len(verdict.tried) > 1 else UNTOLD
            return verdict
        words = following
    finished = _output_folder(words, out)
    verdict.differs = differing(outcome(finished), reference)
    verdict.word = _word_of(verdict, words, kept)
    return verdict


def _word_of(verdict: Verdict, words: Sequence[str], kept: list[str]) -> str:
    if verdict.differs:
        return RECORDS if all(name in _RECORDS for name in verdict.differs) else DIVERGED
    anew, newest = not verdict.went_on_from, verdict.newest or 0
    asked = "--overwrite" in words or "--output_dir" in words
    if anew and (newest > 0 or kept) and not asked:
        return LOST
    if anew and newest == 0:
        # What has no checkpoints goes on by the same command.
        return IDENTICAL if verdict.tried == [""] else RESTARTED
    if len(verdict.tried) > 1:
        return REFUSED
    return FELL_BACK if (verdict.went_on_from or 0) < newest else IDENTICAL


def fault_of(ended: Ended) -> str | None:
    """What is wrong with an end, whatever the run came to; None for success and for an error in a line."""
    if ended.hung:
        return HUNG
    if "Traceback (most recent call last)" in ended.said or ended.code not in (0, 2):
        return TRACEBACK
    return None


def error_of(said: str) -> str:
    """The error that a command ended with."""
    return said.rpartition("error: ")[2].strip()[:1500] if "error: " in said else last_words(said)


def last_words(said: str) -> str:
    """What a command that failed said last; of tracebacks, of which each process may print one, how the first ends."""
    errors = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*$", said, flags=re.MULTILINE)
    return errors[0][:600] if errors else said.strip()[-600:]


def advised(message: str, words: Sequence[str], tried: Sequence[str], folder: Path) -> list[str] | None:
    """The words of the command that an error advises and that was not tried yet; None if there is none."""
    plain = [word for word in words if word not in (*RESUME, "--overwrite")]
    if "--resume_from_checkpoint" in words and words[-1] not in RESUME:
        plain = []
    ways: list[list[str]] = []
    for named in re.findall(r"--resume_from_checkpoint[ =`]+(true\b|[^\s`,;]*checkpoint-\d+)", message):
        ways.append(["--resume_from_checkpoint", named])
    for named in re.findall(r"(\S+/checkpoint-\d+) is (?:complete|whole)", message):
        ways.append(["--resume_from_checkpoint", named])
    for named in re.findall(r"whole one before it is (\S+/checkpoint-\d+)", message):
        ways.append(["--resume_from_checkpoint", named])
    if re.search(r"[Ll]eave the key out|[Ss]tart anew with:|make room and start anew", message):
        ways.append(plain)
    if "--overwrite" in message:
        ways.append([*plain, "--overwrite", "true"])
    if re.search(r"[Nn]ame another|--output_dir", message):
        ways.append(["--output_dir", str(folder / "elsewhere")])
    return next((way for way in ways if " ".join(way) not in tried), None)


def _output_folder(words: Sequence[str], out: Path) -> Path:
    return Path(words[words.index("--output_dir") + 1]) if "--output_dir" in words else out


def newest_whole(out: Path, reference: dict[str, str]) -> int:
    """Step of the newest checkpoint with every file that a whole one has; 0 if there is none."""
    of_whole: dict[str, set[str]] = {}
    for name in reference:
        head, _, rest = name.partition("/")
        if head.startswith("checkpoint-"):
            of_whole.setdefault(head, set()).add(re.sub(r"\d+", "N", rest))
    if not of_whole:
        return 0
    names = set.union(*of_whole.values())
    return max((step for step, there in checkpoints(out).items() if names <= there), default=0)


def checkpoints(out: Path) -> dict[int, set[str]]:
    """Step -> names of the files of each checkpoint that is there, whole or not; numbers in them left out."""
    found = {}
    for folder in out.glob("checkpoint-*"):
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        found[int(folder.name.removeprefix("checkpoint-"))] = {re.sub(r"\d+", "N", name) for name in names}
    return found


def kept_models(out: Path) -> list[str]:
    """Names of the models that a run has kept beside its checkpoints, `best` among them."""
    return sorted(path.parent.name for path in out.glob("checkpoints/[!.]*/config.json"))


def logged_steps(out: Path) -> int:
    """The last step that a run has logged before its end, half a line left out."""
    path = out / "metrics.jsonl"
    return max((line["step"] for line in read_steps(path)[0]), default=0) if path.exists() else 0


def done_again(steps: int, verdict: Verdict) -> int | None:
    """Steps that a run which was killed has done twice; None where it did not come to an end.

    Args:
        steps: that it had logged.
    """
    return None if verdict.went_on_from is None else max(0, steps - verdict.went_on_from)


def went_on_from(events: Sequence[tuple[str, str]], steps: int, every: int) -> int:
    """The step from which a finished run went on, by the first checkpoint that it wrote; all its steps if by none."""
    for event, path in events:
        found = re.search(r"/checkpoint-(\d+)/", path)
        if found and event in ("open", "os.mkdir") and "damaged" not in path and "abandoned" not in path:
            return int(found[1]) - every
    return steps
