"""Models that are loaded as wholes: every file is read before, every weight looked at after.

Whatever loads a model does it by `load_whole`, or asks `whole_model` where another library loads it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hpt_trl.models.built_in import BUILT_IN, unpacked
from hpt_trl.models.folders import check_model_folder
from hpt_trl.models.whole_files import refuse_damaged_model


def resolve_model(name: str) -> str:
    """Return what `from_pretrained` takes for `name`.

    A Hub id and a local folder come back unchanged. A built-in name comes back as a folder in the user's cache, which
    is written on first use (about 15 s and 270 MB for `smollm2-135m`); any number of processes may ask at once.

    Raises:
        UserError: the folder is missing or holds no model, or the package of a built-in model is not installed.
    """
    if name in BUILT_IN:
        return str(unpacked(name))
    check_model_folder(name)
    return name


def whole_model(name: str, *, adapter: str | None = None) -> str:
    """Return what `from_pretrained` takes for the weights of `name`, whose files are read and found to be whole.

    Args:
        adapter: folder of the adapter that is to lie over it, whose files are read as well.

    Raises:
        UserError: as `resolve_model` does, or a file is not what was written.
    """
    if adapter is not None:
        refuse_damaged_model(adapter)
    resolved = resolve_model(name)
    refuse_damaged_model(resolved)
    return resolved


def load_whole(
    load: Callable[..., Any],
    name: str,
    *,
    adapter: str | None = None,
    adapter_settings: Mapping[str, Any] | None = None,
    ready: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> Any:
    """Load a model whose files are whole and whose weights are numbers.

    Args:
        load: `from_pretrained` of a class, or what takes the same.
        name: Hub id, model folder or built-in name.
        adapter: folder of an adapter that lies over it.
        adapter_settings: of `PeftModel.from_pretrained`.
        ready: is called with the model before the adapter is put over it.
        settings: of `load`.

    Raises:
        UserError: as `whole_model` does, or a weight is NaN or infinite.
    """
    from hpt_trl.models.trainable import refuse_broken

    model = load(whole_model(name, adapter=adapter), **settings)
    if ready is not None:
        ready(model)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, **(adapter_settings or {}))
    refuse_broken(model, adapter or name)
    return model
