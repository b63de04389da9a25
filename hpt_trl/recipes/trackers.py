"""The trackers that a recipe may name as `report_to`, and what stands in the way of one; knows no trainer."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import Collector
from hpt_trl.recipes.packages import installed
from hpt_trl.settings.values import did_you_mean

if TYPE_CHECKING:
    from hpt_trl.settings.file import Sources

# Values of `report_to` -> the package that is needed.
TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard"}
NONE, ALL = "none", "all"
# What transformers can report to beside them: it logs its own figures there, this package adds nothing.
OTHERS = (
    *("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune"),
    "swanlab",
)
# Unknown names that a message tells of.
_SHOWN = 5
# Modes of wandb in which it asks no server.
_LOCAL_MODES = ("offline", "dryrun", "disabled")
_OFFLINE = "set WANDB_MODE=offline to log into the folder `wandb` and upload it later (`wandb sync`)"


class NotATracker(ValueError):
    """A value of `report_to` that cannot be meant; the text says what is allowed."""


def named_trackers(value: Any) -> list[str]:
    """The trackers that a value of `report_to` names, each once.

    Args:
        value: A name, a list of names, or None; `none` for no tracker, `all` for those of `TRACKERS` whose package is
            installed.

    Raises:
        NotATracker: an unknown name, something else than a name, or a tracker beside `none`.
    """
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise NotATracker(f"not a name; {_allowed()}")
    known = [*TRACKERS, *OTHERS, NONE, ALL]
    if unknown := [name for name in dict.fromkeys(names) if name not in known][:_SHOWN]:
        listed = ", ".join(f"`{name[:100]}`" for name in unknown)
        meant = "".join(dict.fromkeys(did_you_mean(name, known) for name in unknown))
        raise NotATracker(f"there is no tracker {listed}; {_allowed()}{meant}")
    if NONE in names and len(set(names)) > 1:
        raise NotATracker(
            f"`none` stands beside {', '.join(name for name in names if name != NONE)}; drop one of them."
        )
    every = [name for name, package in TRACKERS.items() if installed(package)] if ALL in names else []
    return list(dict.fromkeys([*every, *(name for name in names if name not in (ALL, NONE))]))


def _allowed() -> str:
    return f"allowed: {', '.join(TRACKERS)}, a list of them, {ALL} or {NONE}."


def missing_package(name: str) -> str | None:
    """The package that a tracker of `TRACKERS` needs and that is not installed; None where it is there."""
    return None if installed(TRACKERS[name]) else TRACKERS[name]


def not_logged_in(name: str, *, space: str | None = None) -> str | None:
    """Why a tracker would ask for a login that nobody answers, and what helps; None where it would not.

    Args:
        name: Of `TRACKERS`; its package is installed.
        space: `trackio_space_id`: the Space of the Hub that trackio is to log to.
    """
    if name == "wandb":
        return _wandb_login()
    if name == "trackio" and (space or os.environ.get("TRACKIO_SPACE_ID")):
        from huggingface_hub import get_token

        if get_token() is None:
            return (
                f"trackio is to log to the Space {space or os.environ['TRACKIO_SPACE_ID']}, and nobody is logged in to "
                "the Hub. Run `hf auth login`, or leave `trackio_space_id` out to log on this machine."
            )
    return None


def _wandb_login() -> str | None:
    import wandb
    from wandb.errors import AuthenticationError

    settings = wandb.setup().settings
    # A run that the user has begun goes on, whoever logged it in.
    if wandb.run is not None or settings.mode in _LOCAL_MODES:
        return None
    try:
        # Unlike `wandb.init`, which waits for an answer on a terminal and in a notebook.
        if wandb.login(prompt=False, verify=False):
            return None
    except AuthenticationError as error:
        return f"wandb: {error} Run `wandb login`, or {_OFFLINE}."
    return f"wandb has no API key for {settings.base_url}. Run `wandb login` or set WANDB_API_KEY; or {_OFFLINE}."


def check_trackers(value: Any, sources: "Sources", *, stage: str, trains: bool, packages: bool) -> list[str]:
    """Check a recipe's `report_to`, as far as that shows without importing a tracker.

    Args:
        value: Of the key.
        stage: The stage's name. trains: Whether it trains a model.
        packages: Whether the trackers' packages have to be there.

    Returns:
        The trackers.

    Raises:
        UserError: an unknown tracker, one that the stage does not report to, or one whose package is missing.
    """
    try:
        names = named_trackers(value)
    except NotATracker as error:
        raise sources.error("report_to", str(error)) from error
    if (others := [name for name in names if name in OTHERS]) and not trains:
        raise sources.error(
            "report_to", f"{', '.join(others)}: the stage `{stage}` reports to wandb, trackio, tensorboard."
        )
    mistakes = Collector()
    for name in names if packages else ():
        if name in TRACKERS and (package := missing_package(name)):
            mistakes.note(sources.error("report_to", f"{name}: {_not_installed(package)}"))
    mistakes.settle()
    return names


def _not_installed(package: str) -> str:
    return f"the package {package} is not installed. Run: pip install 'hpt-trl[tracking]' (or {package})"


def problem_of(names: Sequence[str], *, space: str | None = None) -> tuple[str, str] | None:
    """The first of the trackers that cannot be used, and why; None where all can."""
    for name in names:
        if name in TRACKERS and (package := missing_package(name)):
            return name, _not_installed(package)
        if name in TRACKERS and (why := not_logged_in(name, space=space)):
            return name, why
    return None
