"""A recipe whose keys and values are checked."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.recipes.profiles import Profile
from hpt_trl.settings.file import Sources, shown

if TYPE_CHECKING:
    from trl import ModelConfig

    from hpt_trl.recipes.arguments import RecipeArguments
    from hpt_trl.recipes.stages import Stage
    from hpt_trl.settings.keys import Key


@dataclass
class Recipe:
    """A recipe whose keys and values are checked.

    Attributes:
        path: the YAML file.
        stage: the training stage.
        arguments: data, rewards and evaluation.
        config: the stage's trainer config.
        model_args: TRL's model settings.
        lines: key -> line in the file, counted from 1.
        overrides: keys set on the command line.
        raw: key -> value as the file and the command line give it, types settled; written as YAML it is the resolved
            recipe.
        world_size: processes of the run.
        profile: what the processes share out: of the accelerate config that started them, or is asked about.
        sources: where each value comes from.
        keys: every key that the stage knows.
    """

    path: Path
    stage: "Stage"
    arguments: "RecipeArguments"
    config: Any
    model_args: "ModelConfig"
    lines: dict[str, int]
    overrides: set[str]
    raw: dict[str, Any]
    world_size: int
    profile: Profile
    sources: Sources = field(repr=False)
    keys: "dict[str, Key]" = field(repr=False)

    def error(self, key: str, message: str) -> UserError:
        """Returns (does not raise) the error about a key, with the place that set it in front of the message."""
        return self.sources.error(key, message)

    def setting(self, key: str, default: Any = None) -> Any:
        """Returns the trainer config's value of a key, or the default where the stage has no such key."""
        return getattr(self.config, key) if key in self.keys else default

    def place(self, error: Exception) -> UserError:
        """Returns another's complaint about the settings with the place of the key that it names, if it names one."""
        return place_of(error, self.keys, self.sources)


def place_of(error: Exception, known: "dict[str, Key]", sources: Sources) -> UserError:
    """Returns a config's own complaint with the place of the key that it is about, where it names one."""
    text = str(error).strip()
    named = [word for word in re.findall(r"[A-Za-z_0-9]+", text) if word in known]
    given = [word for word in named if word in sources.file.lines or word in sources.overrides]
    # A single ordinary word (`seed`, `debug`) may stand in any sentence: without a source it proves nothing.
    quoted = [word for word in re.findall(r"`([A-Za-z_0-9]+)`", text) if word in known]
    key = next(iter([word for word in quoted if word in given] + given + quoted), None)
    if key is None:
        return UserError(f"{shown(sources.file.path)}: {text}")
    return sources.error(key, text.removeprefix(f"`{key}` is "))
