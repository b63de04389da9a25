"""The paths that a recipe names, looked at before any of them is followed."""

from pathlib import Path
from typing import Any

from hpt_trl.files import path_fault

# Keys whose value may be a path, or a list of them; of some it may be a name or an address as well.
PATH_KEYS = frozenset(
    {
        *(
            "model_name_or_path",
            "reference_model_name_or_path",
            "reward_model_name_or_path",
            "value_model_name_or_path",
        ),
        *("tokenizer_name_or_path", "model_config_name_or_path", "embedding_model", "chat_template_path", "against"),
        *("dataset_name", "pages", "questions", "search_index", "evaluations", "resume_from_checkpoint", "output_dir"),
        *("judge_cache", "judge_prompt", "reference_cache_dir", "value_cache_dir"),
        *("deepspeed", "fsdp_config", "accelerator_config"),
    }
)

# Of keys that may name other things as well: the endings by which a file is meant.
_FILES: dict[str, str | tuple[str, ...]] = {
    **dict.fromkeys(("deepspeed", "fsdp_config", "accelerator_config"), ".json"),
    "chat_template_path": (".jinja", ".jinja2", ".j2"),
}


def paths_fault(key: str, value: Any) -> str | None:
    """What to say of a key whose path is a pipe, leads in a circle or to nothing, is too long, or may not be read.

    None of other keys and of paths that can be asked for what they lead to.
    """
    if key not in PATH_KEYS:
        return None
    paths = [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, str)]
    if fault := next((f"{_short(path)} {fault}; name another." for path in paths if (fault := path_fault(path))), None):
        return fault
    files = [path for path in paths if path.endswith(_FILES.get(key, ())) and not Path(path).expanduser().exists()]
    return f"there is no file {_short(files[0])} (looked in {Path(files[0]).parent.resolve()})." if files else None


def _short(path: str) -> str:
    return (path if len(path) <= 120 else f"{path[:60]}[…]{path[-60:]}").encode(errors="replace").decode()
