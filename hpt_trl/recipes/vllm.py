"""The recipe key `vllm`: which way of TRL's a recipe gets, and why it cannot be had here.

vLLM is imported where it is asked for: a recipe is read without it.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hpt_trl.recipes.packages import installed

if TYPE_CHECKING:
    from hpt_trl.recipes.recipe import Recipe
    from hpt_trl.settings.file import Sources
    from hpt_trl.settings.keys import Key

INSTALL = "pip install 'hpt-trl[vllm]'"
# Seconds that a recipe waits for a server where it does not say `vllm_server_timeout`; TRL's own default is 240.
SERVER_WAIT = 10.0
# Weights reach a server over NCCL.
SYNC_DEVICE = "cuda"


def settle_vllm(
    values: dict[str, Any], known: "dict[str, Key]", stage: str, sources: "Sources", planned: bool = False
) -> None:
    """Turns the key `vllm` into TRL's `use_vllm` and `vllm_mode`, or refuses what cannot work here.

    Args:
        values: the recipe's keys so far, `use_cpu` among them; changed in place.
        known: every key of the stage.
        stage: its name.
        sources: where each value comes from.
        planned: the recipe is checked for processes that run elsewhere, where vLLM may be installed.

    Raises:
        UserError: the stage generates nothing, TRL's keys are set as well, or vLLM was asked for and cannot be used.
    """
    asked = values.get("vllm")
    key = "vllm" if asked is not None else "use_vllm"
    if asked is not None:
        if "use_vllm" not in known:
            raise sources.error("vllm", f"the stage `{stage}` generates no rollouts; drop the line.")
        for other in ("use_vllm", "vllm_mode"):
            if other in values:
                raise sources.error(
                    "vllm",
                    f"`{other}` is set as well; keep one of the two: `vllm: {asked}` says both `use_vllm` and "
                    "`vllm_mode`.",
                )
        mode = "colocate" if asked == "auto" else asked
        values["use_vllm"] = asked != "auto" or why_not(mode, **_circumstances(values)) is None
        values["vllm_mode"] = mode
    if not values.get("use_vllm"):
        return
    mode = str(values.get("vllm_mode") or "colocate")
    reason = None if asked == "auto" or planned else why_not(mode, **_circumstances(values))
    if reason is not None:
        raise sources.error(key, f"{reason}. Or write `vllm: auto`, to use vLLM only where it works.")
    if mode == "server":
        values.setdefault("vllm_server_timeout", SERVER_WAIT)
        address = str(values.get("vllm_server_base_url") or "http://")
        if not address.startswith(("http://", "https://")):
            raise sources.error("vllm_server_base_url", f"{address} is no URL; write e.g. `http://localhost:8000`.")


def _circumstances(values: dict[str, Any]) -> dict[str, Any]:
    return {name: bool(values.get(name)) for name in ("use_cpu", "load_in_4bit", "load_in_8bit")}


def why_not(mode: str, *, use_cpu: bool, load_in_4bit: bool = False, load_in_8bit: bool = False) -> str | None:
    """Returns why a run cannot use vLLM here, and what to do about it, or None where it can.

    Args:
        mode: `colocate` or `server`.
        use_cpu: the run trains on the CPU.
        load_in_4bit: its base is quantized to 4 bits.
        load_in_8bit: its base is quantized to 8 bits.
    """
    import torch

    if find_spec("vllm") is None:
        on_cpu = " (a build for GPUs; for a CPU see docs/vllm.md)" if use_cpu else ""
        return f"vLLM is not installed here: {INSTALL}{on_cpu}"
    try:
        from vllm.platforms import current_platform
    except Exception as error:  # whatever a build for another machine fails with
        return f"vLLM is installed but cannot be imported ({type(error).__name__}: {error}); reinstall it: {INSTALL}"
    accelerator = None if use_cpu else torch.accelerator.current_accelerator()
    device = "cpu" if accelerator is None else accelerator.type
    if mode == "server":
        if device != SYNC_DEVICE:
            how = "weights reach a vLLM server over NCCL, between GPUs"
            return f"{how}, and this run trains on {device}; write `vllm: colocate`"
        if load_in_4bit or load_in_8bit:
            return "a vLLM server takes no quantized weights (`load_in_4bit`, `load_in_8bit`); write `vllm: colocate`"
        return None
    if current_platform.device_type != device:
        built = current_platform.device_type or "no device of this machine"
        return f"vLLM {_version()} is built for {built} and this run trains on {device}: install the build for {device}"
    if load_in_8bit:
        return "vLLM cannot generate with the weights of `load_in_8bit`; use `load_in_4bit`, or an adapter alone"
    if load_in_4bit and device == "cpu":
        return "vLLM has no 4-bit weights on a CPU; drop `load_in_4bit`"
    return None


def _version() -> str:
    return installed("vllm") or "of unknown version"


def describe(recipe: "Recipe") -> str | None:
    """Returns what generates a recipe's rollouts; None where a stage has none.

    With `vllm: auto` it says why, and of processes that are only planned, why vLLM cannot be used on this machine.
    """
    if "use_vllm" not in recipe.keys:
        return None
    config = recipe.config
    chosen = "transformers"
    if config.use_vllm:
        chosen = f"the vLLM server at {address_of(config)}" if config.vllm_mode == "server" else "vLLM, colocate"
    asked_for = recipe.arguments.vllm != "auto"
    if asked_for and not config.use_vllm:
        return chosen
    arguments = recipe.model_args
    reason = why_not(
        config.vllm_mode if asked_for else "colocate",
        use_cpu=config.use_cpu,
        load_in_4bit=arguments.load_in_4bit,
        load_in_8bit=arguments.load_in_8bit,
    )
    if asked_for:
        return f"{chosen} (not on this machine: {reason})" if reason else chosen
    return f"{chosen} (vllm: auto; {reason or f'vLLM {_version()} works on this device'})"


def address_of(config: Any) -> str:
    """Returns the base URL of the server that a `GRPOConfig` names."""
    address = config.vllm_server_base_url or f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    return str(address).rstrip("/")
