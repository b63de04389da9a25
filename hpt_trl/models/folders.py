"""What a local folder holds: a whole model, an adapter, a value model, or nothing of it."""

from pathlib import Path

from hpt_trl.errors import UserError
from hpt_trl.files import folder_fault, path_fault
from hpt_trl.models.built_in import BUILT_IN, is_unpacked
from hpt_trl.models.whole_files import AGAIN, shown_damage

# Where a value head lies beside its trunk, also PPO's on a policy; the second file makes a folder a value model's.
VALUE_HEAD_FILE = "value_head/value_head.safetensors"
VALUE_CONFIG_FILE = "value_head/value_head.json"
# Where heads for future tokens lie beside their model; the first file makes a folder one that has some.
HEADS_FOLDER = "future_heads"
HEAD_FILES = (f"{HEADS_FOLDER}/config.json", f"{HEADS_FOLDER}/model.safetensors")
# The task that PEFT knows the trunk of a value model by, which has no head of its own.
VALUE_TASK = "FEATURE_EXTRACTION"
CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Whether a name leads to a local PEFT adapter; of one on the Hub see `hub_parts.adapter_folder`."""
    return (Path(name) / ADAPTER_FILE).is_file()


def is_value_model(name: str) -> bool:
    """Whether a name leads to a local folder that holds a value model, a whole one or an adapter."""
    return (Path(name) / VALUE_CONFIG_FILE).is_file()


def check_model_name(name: str) -> None:
    """Check that a name leads to a model, as far as that shows without a library; a Hub id passes unseen.

    Raises:
        UserError: the folder holds no config or no weights, or the package of a built-in model is missing.
    """
    if name not in BUILT_IN:
        check_model_folder(name)
    elif not is_unpacked(name):
        BUILT_IN[name].check()


def check_model_folder(name: str, *, key: str = "model_name_or_path", adapters: bool = False) -> None:
    """Check that a local folder holds a model; a Hub id passes unseen.

    Args:
        key: the recipe key that names it, for the message.
        adapters: a PEFT adapter will do.

    Raises:
        UserError: there is no such folder, or it holds no config or no weights.
    """
    if fault := path_fault(name):
        raise UserError(f"{key}: {name[:200]} {fault}.")
    if not is_local(name):
        return
    # from_pretrained does not expand `~`: it would look for a Hub repository of that name.
    if name.startswith("~"):
        raise UserError(f"{key}: {name}: `~` is not expanded here; write {Path(name).expanduser()}")
    folder = Path(name)
    if not folder.exists():
        raise UserError(
            f"{key}: there is no folder {name}. Write a local model folder, a Hub id (owner/name) or a "
            f"built-in name ({', '.join(BUILT_IN)})."
        )
    if not folder.is_dir():
        raise UserError(f"{key}: {name} is a file; write the folder that holds config.json.")
    if not (folder / "config.json").is_file() and not (adapters and is_adapter(name)):
        if is_adapter(name):
            raise UserError(f"{key}: {adapter_refused(name)}")
        raise UserError(f"{key}: {name} holds no config.json; write the folder that save_pretrained wrote.")
    if not any(path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()):
        raise UserError(
            f"{key}: {name} holds no weights (*.safetensors or *.bin). Name the folder that save_pretrained wrote."
        )
    if (damage := shown_damage(folder)) is not None:
        raise UserError(f"{key}: {damage}. {AGAIN}")


def adapter_refused(name: str, revision: str | None = None) -> str:
    """What to say of an adapter where a whole model is needed.

    Args:
        name: of its folder, or its Hub id.
        revision: of a Hub id.
    """
    words = "" if revision in (None, "main") else f" --revision {revision}"
    return (
        f"{name} holds a PEFT adapter, not a whole model. Merge it into its base model with "
        f"`hpt-trl merge {name} OUT{words}` and name the merged folder."
    )


def has_processor(folder: Path) -> bool:
    """Whether a processor of images lies beside a model."""
    return any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


def check_merge(source: str, target: Path) -> None:
    """Check that a folder holds an adapter to merge, and that the whole model can be written to another.

    Args:
        source: folder of an adapter; the id of a run on the Hub passes unseen.
        target: the other folder.

    Raises:
        UserError: it does not, or the other one is not empty.
    """
    if not is_pushed_name(source) and not is_adapter(source):
        raise UserError(f"{source} holds no adapter ({ADAPTER_FILE}); name the folder of a run with `use_peft`.")
    if fault := folder_fault(target):
        raise UserError(f"{target} {fault}; name a folder that is new or empty.")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty, and nothing is written over; name a folder that is new or empty.")


def is_local(name: str) -> bool:
    """A folder that exists, or a name that no Hub id can have (`./x`, `~/x`, `/x`, `a/b/c`, `x/`).

    `outputs/x` is what another recipe writes, or was to write.
    """
    return (
        Path(name).expanduser().exists()
        or name.startswith((".", "~", "/", "outputs/"))
        or name.endswith("/")
        or name.count("/") > 1
    )


def is_pushed_name(name: str) -> bool:
    """Whether a name can be that of a run on the Hub, which always has an owner, and is none of a folder."""
    return "/" in name and not is_local(name)
