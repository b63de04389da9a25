"""What can be done with the model that a run has left: the commands that its closing lines name."""

import json
import shlex
from pathlib import Path

from hpt_trl.models.folders import is_adapter

# Their models write no text.
_WITHOUT_TEXT = ("reward", "critic")
# What vLLM 0.30 takes as `--max-lora-rank`, and what that is unless it is given.
_LORA_RANKS, _USUAL_RANK = (16, 32, 64, 128, 256, 320, 512), 16


def next_commands(folder: str | Path, stage: str) -> list[str]:
    """Lines with the commands that look at a finished run, talk to its model and serve it.

    Args:
        folder: The run's output folder.
        stage: The recipe's.
    """
    name = shlex.quote(str(folder))
    lines = [f"Report:  hpt-trl report {name}"]
    if stage in _WITHOUT_TEXT:
        return lines
    return [f"Talk:    hpt-trl chat {name}", *lines, f"Serve:   {serving(Path(folder))}"]


def serving(folder: Path) -> str:
    """The command by which vLLM serves a model or an adapter; of an adapter that vLLM cannot load the way there."""
    name = shlex.quote(str(folder))
    if not is_adapter(str(folder)):
        return f"vllm serve {name}"
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = [adapter.get("r") or 0, *(adapter.get("rank_pattern") or {}).values()]
    rank = next((rank for rank in _LORA_RANKS if rank >= max(ranks)), None)
    if adapter["peft_type"] != "LORA" or adapter.get("use_dora") or adapter.get("modules_to_save") or rank is None:
        merged = shlex.quote(f"{folder}-merged")
        return f"hpt-trl merge {name} {merged} && vllm serve {merged}"
    base = shlex.quote(str(adapter["base_model_name_or_path"]))
    more = f" --max-lora-rank {rank}" if rank > _USUAL_RANK else ""
    return f"vllm serve {base} --enable-lora --lora-modules {shlex.quote(f'{folder.name}={folder}')}{more}"
