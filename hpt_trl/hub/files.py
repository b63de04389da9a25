"""Which files of an output folder go up: those that are named here, and no other.

An allow-list, since a folder may hold anything: checkpoints, optimizers, completions, a pickle of the arguments.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hpt_trl.errors import UserError
from hpt_trl.hub.public import public_recipe, public_results
from hpt_trl.hub.run_folder import RunFolder
from hpt_trl.models.folders import HEAD_FILES, VALUE_CONFIG_FILE, VALUE_HEAD_FILE
from hpt_trl.run_files import CURVES_FILE, METRICS_FILE, RECIPE_FILE, RESULTS_FILE

CARD_FILE = "README.md"
ADAPTER_FILE = "adapter_config.json"

# What `save_pretrained` writes of models, adapters, tokenizers and processors.
_MODEL = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *(ADAPTER_FILE, "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
_HEADS = (VALUE_HEAD_FILE, VALUE_CONFIG_FILE, *HEAD_FILES)
RECORD = (METRICS_FILE, CURVES_FILE, "reward_shift.png", "value_curves.png")
# Code that comes with a model, which its config then names.
_CODE, _NAMES_CODE = "*.py", "auto_map"
# Written anew for others.
_WRITTEN = (CARD_FILE, RECIPE_FILE, RESULTS_FILE)
# What a former push, or another tool, may have left of another model.
_STALE = (*_MODEL, *_HEADS, *RECORD, *_WRITTEN, "*.safetensors", "pytorch_model*.bin", "adapter_model.bin")


@dataclass(frozen=True)
class Bundle:
    """What goes up.

    Attributes:
        files: path in the repository -> file on this machine.
        texts: path in the repository -> what is written for others in place of a file of this machine.
    """

    files: dict[str, Path]
    texts: dict[str, str]

    @property
    def names(self) -> set[str]:
        return self.files.keys() | self.texts.keys()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.files.values()) + sum(
            len(text.encode()) for text in self.texts.values()
        )


def bundle_of(run: RunFolder, name: str, card: str) -> Bundle:
    """What of a run goes up.

    Args:
        name: of the repository.
        card: text of the card.

    Raises:
        UserError: an adapter whose base model is on this machine alone.
    """
    patterns = [*_MODEL, *_HEADS, *RECORD]
    if run.model is not None and _NAMES_CODE in run.model:
        patterns.append(_CODE)
    found = {path for pattern in patterns for path in run.folder.glob(pattern) if path.is_file()}
    files = {path.relative_to(run.folder).as_posix(): path for path in sorted(found)}
    texts = {
        CARD_FILE: card,
        RECIPE_FILE: public_recipe(run, name),
        RESULTS_FILE: json.dumps(public_results(run), indent=2, ensure_ascii=False) + "\n",
    }
    if run.adapter is not None:
        texts[ADAPTER_FILE] = _adapter_config(run)
    return Bundle({place: path for place, path in files.items() if place not in texts}, texts)


def stale(there: list[str], bundle: Bundle) -> list[str]:
    """Files of a repository that a model of ours, or another one, left there, and that are not of this one."""
    old = {name for name in there for pattern in _STALE if _matches(name, pattern)}
    return sorted(old - bundle.names)


def _matches(name: str, pattern: str) -> bool:
    # A star is not to reach into folders.
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def check_base(run_folder: str, base: str | None) -> None:
    """Refuse an adapter whose base is on no Hub.

    Args:
        run_folder: of the adapter. base: its base model where that is on this machine alone; else None.

    Raises:
        UserError: what to do instead.
    """
    if base is not None:
        raise UserError(
            f"an adapter is of use with its base model alone, and {base} is on this machine. Push the base first "
            f"(`hpt-trl push {base}`), if a run of this package left it; or merge the adapter into it (`hpt-trl merge "
            f"{run_folder} {run_folder}-merged`), and push the whole model."
        )


def _adapter_config(run: RunFolder) -> str:
    config = dict(run.adapter or {})
    if run.base is None:
        check_base(str(run.folder), str(run.recipe.get("model_name_or_path")))
    else:
        config |= {"base_model_name_or_path": run.base.name, "revision": run.base.revision}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
