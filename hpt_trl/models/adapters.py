"""Adapters: the model under one, what is saved of them, and in which type they go on in a training."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


def base_of(model: Any) -> Any:
    """The model under an adapter, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def keep_four_bit_trainable(model: Any) -> None:
    """Keep the 4-bit layers of a model in the form that has gradients.

    On CPUs with AVX512-BF16, bitsandbytes repacks a layer for inference at its first forward pass in evaluation mode,
    for good: a training after an evaluation would then find every gradient below that layer missing, with no error.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False


def keep_adapter_type(model: Any) -> None:
    """Let a resumed run go on with its adapter in the type that it was trained in; other models are left alone.

    TRL trains an adapter over a quantized base in bfloat16, and PEFT casts what it loads to float32: the run would go
    on with other arithmetic and end at other weights.
    """
    if getattr(model, "peft_config", None):
        model.load_adapter = partial(model.load_adapter, autocast_adapter_dtype=False)


@contextmanager
def hidden_adapter(model: Any, name: str) -> Iterator[None]:
    """Keep a frozen adapter out of what is saved; a model without it is left alone.

    Its entry in `peft_config` stays meanwhile: by it PEFT knows which weights are not the other adapters'.
    """
    adapters = getattr(model, "peft_config", {})
    if name not in adapters:
        yield
        return
    others = [other for other in adapters if other != name]
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=others)
    try:
        yield
    finally:
        del model.save_pretrained
