"""A pipeline whose files are checked: its stages, and what each of them reads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpt_trl.errors import Place
from hpt_trl.models.folders import is_adapter, is_value_model
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.pipeline_keys import ALIASES
from hpt_trl.recipes.profiles import Profile
from hpt_trl.settings.environment import environment_of
from hpt_trl.settings.file import UNSET, RecipeFile, Sources
from hpt_trl.settings.values import WORDS_FOR_TRUE

# Where the stages' recipes are written, beside the stages' own folders.
RECIPES_FOLDER = "recipes"


@dataclass
class PlannedStage:
    """One stage of a pipeline.

    Attributes:
        name: its name, also of its output folder.
        place: of its line in the pipeline.
        kind: the training stage (`sft`, `reward`, ...); empty where it names none that there is.
        recipe: name or path of the recipe that its keys stand on; None where all keys are in the pipeline.
        values: recipe key -> value, references as they are written (`from:sft`); without `output_dir`.
        texts: the values that are single scalars, as written.
        inner: what stands inside of the values that are mappings and lists.
        words: keys set on the command line -> the words that follow them.
        places: key -> where it is set, as messages name it.
        folders: of the files that its keys are from, in which modules are looked up first.
        measure: the measure that the table shows first; None for the stage's usual one.
    """

    name: str
    place: Place
    kind: str = ""
    recipe: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    inner: dict[str, RecipeFile] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    measure: str | None = None

    @property
    def uses(self) -> list[str]:
        """Names of the stages whose output it takes, in the order of the keys."""
        return list(dict.fromkeys(used for value in self.values.values() for used in references_of(value)))

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
        lines = {key: place.line for key, place in stage.places.items() if place.line is not None}
        return StageSources(
            file=RecipeFile(self.file.path, values, lines, texts, stage.inner),
            overrides=stage.words | words,
            places=stage.places,
            stage=stage.place,
        )


@dataclass
class StageSources(Sources):
    """The sources of a stage's recipe, of which each key has a place of its own: recipe, pipeline or command line.

    Attributes:
        places: key -> where it is set.
        stage: place of the stage.
    """

    places: dict[str, Place]
    stage: Place

    @property
    def folder(self) -> None:
        """None: the paths count from the file that sets each key, and are absolute where they lead somewhere there."""

    def place(self, key: str, *inside: str) -> Place:
        if key not in self.places:
            return replace(self.stage, key=f"{self.stage.key}.{key}", note=UNSET)
        place = self.places[key]
        return place if place.on_command_line else replace(place, line=self.file.line(key, *inside))
