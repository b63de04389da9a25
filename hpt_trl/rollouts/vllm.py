"""vLLM for rollouts: a server that has to be there, and the engine on a CPU.

TRL 1.16 generates with vLLM in the training process (`colocate`) or through a server; `hpt_trl.recipes.vllm` settles
which of the two a recipe gets. Here a server that is not there, or cannot take weights, ends the run before anything is
loaded; `hpt_trl.rollouts.vllm_client` ends it when the server dies later.
"""

import functools
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hpt_trl.errors import UserError
from hpt_trl.recipes.vllm import address_of, describe

if TYPE_CHECKING:
    import requests

    from hpt_trl.recipes.recipe import Recipe

# Seconds for a connection, and for the answer to a question that costs the server nothing.
CONNECT_TIMEOUT, PROBE_TIMEOUT = 5.0, 10.0


def open_engine(recipe: "Recipe") -> None:
    """Says what `vllm: auto` came to, and waits for the server of a recipe that names one; before weights are loaded.

    Raises:
        UserError: the server is not there within `vllm_server_timeout` seconds, or cannot be used.
    """
    if "use_vllm" not in recipe.keys:
        return
    if recipe.arguments.vllm == "auto":
        print(f"rollouts: {describe(recipe)}", flush=True)
    config = recipe.config
    if config.use_vllm and config.vllm_mode == "server":
        model = str(recipe.model_args.model_name_or_path)
        await_server(address_of(config), float(config.vllm_server_timeout), model)


# A server.


def server_command(model: str, address: str) -> str:
    """Returns the command that starts a server for a run: vLLM's own, with what TRL's client asks of it."""
    port = address.rpartition(":")[2].strip("/")
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(model)} --port {port if port.isdigit() else 8000} "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1 """
        "--enable-scale-out"
    )


def await_server(address: str, seconds: float, model: str) -> None:
    """Waits until a vLLM server answers, and looks whether weights can be sent to it.

    Args:
        address: its base URL.
        seconds: how long to wait; one question may last `PROBE_TIMEOUT` longer.
        model: for the command in the message.

    Raises:
        UserError: it is not there, is something else, or was started without what a trainer needs; the message has
            the address, what was tried and the command that starts one.
    """
    import requests

    started, asked = time.monotonic(), 0
    while True:
        asked += 1
        try:
            health = requests.get(f"{address}/health", timeout=(CONNECT_TIMEOUT, PROBE_TIMEOUT))
            if health.status_code == 200:
                break
            problem = f"it answers {health.status_code} to /health"
        except requests.RequestException as error:
            problem = cause(error)
        waited = time.monotonic() - started
        if waited + 1.0 > seconds:
            raise UserError(
                f"the vLLM server at {address} is not there: asked {asked} times for /health in {waited:.0f} s, "
                f"{problem}. Start one, and give it time to load with `vllm_server_timeout` (now {seconds:g} s):\n"
                f"  {server_command(model, address)}"
            )
        time.sleep(1.0)
    try:
        told = requests.get(
            f"{address}/server_info", params={"config_format": "json"}, timeout=(CONNECT_TIMEOUT, PROBE_TIMEOUT)
        )
    except requests.RequestException as error:
        raise lost(address, model, f"/server_info: {cause(error)}") from error
    missing = _missing(told)
    if missing:
        raise UserError(
            f"the server at {address} cannot be trained with: {missing}. Start it anew:\n"
            f"  {server_command(model, address)}"
        )


def _missing(told: "requests.Response") -> str | None:
    """What a server lacks that a trainer needs, by its answer to /server_info."""
    if told.status_code != 200:
        return f"it answers {told.status_code} to /server_info, as a vLLM server does without VLLM_SERVER_DEV_MODE=1"
    try:
        config = told.json()["vllm_config"]
    except (ValueError, KeyError, TypeError):
        return "it says nothing of vLLM at /server_info"
    if config.get("weight_transfer_config") is None:
        return "it has no weight-transfer engine (`--weight-transfer-config`)"
    return None


def cause(error: BaseException) -> str:
    """Returns the innermost reason of a failed request in a few words, e.g. "Connection refused"."""
    while (inner := error.__cause__ or error.__context__ or _reason(error)) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip() or type(error).__name__


def _reason(error: BaseException) -> BaseException | None:
    """urllib3 keeps the reason of its last retry in an attribute, requests keeps urllib3's error as an argument."""
    held = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    return held if isinstance(held, BaseException) else None


def lost(address: str, model: str, problem: str) -> UserError:
    """Returns (does not raise) the error about a server that failed while it was in use."""
    return UserError(
        f"the vLLM server at {address} failed during the run ({problem}). The last checkpoint stays. Start the server "
        f"anew:\n  {server_command(model, address)}\nand go on with `--resume_from_checkpoint true`."
    )


# The engine inside of TRL.


@contextmanager
def mended(config: Any, model: Any) -> Iterator[None]:
    """While open, TRL builds its engine with the mends of this package; around the constructor of a `GRPOTrainer`.

    A server's client is `vllm_client.Client`. On a CPU the engine of `colocate` starts without compiling its model,
    which takes longer than the short runs that a CPU is for, and keeps its weights where new ones can be written.

    Args:
        config: the trainer's config.
        model: model or its name, as the trainer takes it.
    """
    if config is None or not config.use_vllm:
        yield
        return
    import torch
    from trl.generation import vllm_generation

    replaced: dict[str, Any] = {}
    if config.vllm_mode == "server":
        from hpt_trl.rollouts.vllm_client import Client

        name = model if isinstance(model, str) else model.name_or_path
        replaced["VLLMClient"] = functools.partial(Client, answer_timeout=config.ddp_timeout, trained=name)
    elif find_spec("vllm") is not None and (config.use_cpu or not torch.accelerator.is_available()):
        keep_weights_unpacked()
        replaced["LLM"] = functools.partial(vars(vllm_generation)["LLM"], enforce_eager=True)
    names = vars(vllm_generation)
    before = {name: names[name] for name in replaced}
    names.update(replaced)
    try:
        yield
    finally:
        names.update(before)


def keep_weights_unpacked() -> None:
    """Makes vLLM on a CPU compute linear layers with the weights as they lie, in this process from now on.

    It would pack a copy of them once, at loading, and drop the original or go on with the copy: weights that are sent
    later would have no place, or no effect. Does nothing to vLLM's builds for other devices.
    """
    import torch
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    def unpacked(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    if current_platform.is_cpu():
        utils.dispatch_cpu_unquantized_gemm = unpacked
