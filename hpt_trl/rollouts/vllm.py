"""vLLM for rollouts: a server that has to be there, and the engine on a CPU.

TRL 1.16 generates with vLLM in the training process (`colocate`) or through a server; `hpt_trl.recipes.vllm` settles
which of the two a recipe gets. Here a server that is not there, or cannot take weights, ends the run before anything is
loaded; `hpt_trl.rollouts.vllm_client` ends it when the server dies later.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hpt_trl.recipes.vllm import address_of, describe
from hpt_trl.rollouts.vllm_server import await_server

if TYPE_CHECKING:
    from hpt_trl.recipes.recipe import Recipe


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
