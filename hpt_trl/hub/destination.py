"""Where a run goes on the Hub, as its recipe or the command line says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.run_files import PIPELINE_FILE

# Keys that say where a result goes, not what it is.
HUB_KEYS = (
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push"),
    "hub_overwrite",
)
_MAIN = "main"


@dataclass(frozen=True)
class Destination:
    """A repository that is asked for.

    Attributes:
        name: `owner/name`, or a name alone, which then is the user's own.
        private: whether it is to be private where it is made; None for the owner's default.
        revision: branch; None for `main`.
        overwrite: whether it may hold something that is no run of this package.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    overwrite: bool = False

    def words(self) -> list[str]:
        """The words of `hpt-trl push` that ask for the same."""
        words = ["--hub_model_id", self.name]
        if self.private is not None:
            words += ["--private", str(self.private).lower()]
        if self.revision is not None:
            words += ["--revision", self.revision]
        return words + (["--overwrite", "true"] if self.overwrite else [])


def destination(recipe: Mapping[str, Any], folder: str | Path) -> Destination:
    """Where a recipe's run goes; without a name of its own the repository is called as the output folder is.

    Args:
        recipe: key -> value.
    """
    return Destination(
        name=recipe.get("hub_model_id") or _name_of(Path(folder).resolve()),
        private=recipe.get("hub_private_repo"),
        revision=branch(recipe.get("hub_revision")),
        overwrite=bool(recipe.get("hub_overwrite", False)),
    )


def _name_of(folder: Path) -> str:
    # A stage's name alone would say little on the Hub, and be that of other pipelines' stages.
    of_pipeline = (folder.parent / PIPELINE_FILE).is_file()
    return f"{folder.parent.name}-{folder.name}" if of_pipeline else folder.name


def branch(name: str | None) -> str | None:
    """A branch by its name; None for `main`."""
    return None if name in (None, "", _MAIN) else str(name)


def refuse_pushing_midway(recipe: Mapping[str, Any]) -> None:
    """Refuse settings by which Trainer pushes while it trains.

    Raises:
        UserError: the message starts with the key.
    """
    strategy = recipe.get("hub_strategy")
    if strategy is not None and strategy != "end":
        raise UserError(
            f"hub_strategy: {strategy}, but a checkpoint holds what is not for others (optimizer, random states, a "
            "pickle), and its model is not evaluated. A run is pushed once, after its results: drop the line, or write "
            "`hub_strategy: end`."
        )
    if recipe.get("hub_always_push"):
        raise UserError("hub_always_push: a run is pushed once, after its results; drop the line.")
