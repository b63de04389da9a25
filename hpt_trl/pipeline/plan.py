"""A pipeline whose files are checked: its stages, and what each of them reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import Place
from hpt_trl.models.folders import is_adapter, is_value_model
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.pipeline_keys import ALIASES
from hpt_trl.recipes.profiles import Profile
from hpt_trl.settings.environment import environment_of
from hpt_trl.settings.file import RecipeFile, Sources, shown
from hpt_trl.settings.values import WORDS_FOR_TRUE

# Where the stages' recipes are written, beside the stages' own folders.
RECIPES_FOLDER = "recipes"


@dataclass
class PlannedStage:
    """One stage of a pipeline.

    Attributes:
        name: its name, also of its output folder.
        kind: the training stage (`sft`, `reward`, ...).
        recipe: name or path of the recipe that its keys stand on; None where all keys are in the pipeline.
        values: recipe key -> value, references as they are written (`from:sft`); without `output_dir`.
        texts: the values that are single scalars, as written.
        words: keys set on the command line -> the words that follow them.
        places: key -> where it is set, as messages name it.
        folders: of the files that its keys are from, in which modules are looked up first.
        uses: names of the stages whose output it takes, in the order of the keys.
        measure: the measure that the table shows first; None for the stage's usual one.
    """

    name: str
    kind: str
    recipe: str | None
    values: dict[str, Any]
    texts: dict[str, str]
    words: dict[str, list[str]]
    places: dict[str, Place]
    folders: list[Path]
    uses: list[str]
    measure: str | None

    @property
    def is_pushed(self) -> bool:
        """Whether it is to be pushed to the Hub."""
        return str(self.values.get("push_to_hub", False)).lower() in WORDS_FOR_TRUE

    @property
    def leaves_model(self) -> bool:
        """Whether its output is a model, and not what an evaluation measured or a search index."""
        return self.kind not in ("evaluate", "index")


@dataclass
class Plan:
    """A pipeline whose files are checked.

    Attributes:
        file: the pipeline's YAML.
        output_dir: folder of all stages.
        stages: in an order in which each stage comes after those it uses.
        profile: how the processes of each stage are started; None for one plain process.
        overwrite: run every stage anew.
    """

    file: RecipeFile
    output_dir: Path
    stages: list[PlannedStage]
    profile: Profile | None
    overwrite: bool

    def folder(self, name: str) -> Path:
        """Output folder of a stage."""
        return self.output_dir / name

    def merged_folder(self, name: str) -> Path:
        """Folder of a stage's adapter merged into its base model."""
        return self.output_dir / f"{name}-merged"

    def resolved(self, stage: PlannedStage) -> dict[str, Any]:
        """A stage's keys as its own run reads them: references are folders; those of the command line are left out."""

        def resolve(key: str, item: Any) -> Any:
            if not references_of(item):
                return item
            (used,) = references_of(item)
            # Reward and reference models are loaded with their adapter; what is trained has to be a whole model.
            takes_adapter = key in (ALIASES["reward_model"], ALIASES["reference"])
            # So are value models; a reward model that is to be one gives its trunk, which is to be whole.
            takes_adapter |= key == ALIASES["value_model"] and is_value_model(str(self.folder(used)))
            is_merged = not takes_adapter and is_adapter(str(self.folder(used)))
            return str(self.merged_folder(used) if is_merged else self.folder(used))

        return {
            "output_dir": str(self.folder(stage.name)),
            # As it is called where a finished stage is pushed by hand; the folder's name alone would say little.
            **({"hub_model_id": f"{self.output_dir.resolve().name}-{stage.name}"} if stage.is_pushed else {}),
            **{
                key: [resolve(key, item) for item in value] if isinstance(value, list) else resolve(key, value)
                for key, value in stage.values.items()
                if key not in stage.words
            },
            **environment_of(stage.values, stage.values.get("env"), stage.folders),
        }

    def sources(self, stage: PlannedStage, words: dict[str, list[str]]) -> "StageSources":
        """What `resolve_recipe` reads a stage from.

        Args:
            words: the runner's keys for this start (`overwrite`, `resume_from_checkpoint`).
        """
        values = self.resolved(stage)
        texts = {key: text for key, text in stage.texts.items() if key in values and not references_of(text)}
        texts = {key: value for key, value in values.items() if isinstance(value, str)} | texts
        lines = dict.fromkeys(stage.values, self.file.lines["stages"])
        return StageSources(
            file=RecipeFile(path=self.file.path, values=values, lines=lines, texts=texts),
            overrides=stage.words | words,
            places=stage.places,
            default_place=f"{shown(self.file.path)}, stage `{stage.name}`",
        )


@dataclass
class StageSources(Sources):
    """The sources of a stage's recipe, of which each key has a place of its own: recipe, pipeline or command line."""

    places: dict[str, Place]
    default_place: str

    @property
    def folder(self) -> None:
        """None: the paths count from the file that sets each key, and are absolute where they lead somewhere there."""

    def place(self, key: str) -> Place:
        if key in self.places:
            return self.places[key]
        return Place(f"{self.default_place}, `{key}` (not set, its default holds)", shown(self.file.path), key)
