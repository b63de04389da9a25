"""Which packages are installed, asked without importing them, and which of them the keys of a recipe ask for."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

# Beginnings of the names that Transformers gives to optimizers of other packages, and the package of each.
_OPTIMIZERS = {
    **dict.fromkeys(("adamw_bnb", "adamw_8bit", "paged_", "lion", "ademamix", "rmsprop_bnb"), "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
    **dict.fromkeys(("lomo", "adalomo"), "lomo-optim"),
    **{"galore": "galore-torch", "apollo": "apollo-torch", "schedule_free": "schedulefree", "grokadamw": "grokadamw"},
    **{"stable_adamw": "torch-optimi", "adamw_apex": "apex", "adamw_anyprecision": "torchdistx"},
}
_EXTRAS = {"bitsandbytes": "'hpt-trl[quantization]'"}


class Wanted(NamedTuple):
    """A package that a key asks for."""

    key: str
    package: str

    @property
    def install(self) -> str:
        """What installs it."""
        return f"pip install {_EXTRAS.get(self.package, self.package)}"


def installed(*names: str) -> str | None:
    """Returns the version of the first of these packages that is installed, None for none."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def wanted(values: dict[str, Any]) -> Iterator[Wanted]:
    """Yields the packages that a recipe's keys ask for by their value, and that come with none of the others.

    Args:
        values: key -> value.
    """
    for key in ("load_in_4bit", "load_in_8bit", "reference_load_in_4bit"):
        if values.get(key):
            yield Wanted(key, "bitsandbytes")
    optimizer = str(values.get("optim"))
    for beginning, package in _OPTIMIZERS.items():
        if optimizer.startswith(beginning):
            yield Wanted("optim", package)
    if values.get("use_liger_kernel"):
        yield Wanted("use_liger_kernel", "liger-kernel")
    within = values.get("model_init_kwargs")
    loading = within if isinstance(within, dict) else {}
    for key, holder in (("attn_implementation", values), ("model_init_kwargs", loading)):
        attention = str(holder.get("attn_implementation"))
        if attention.startswith("flash_attention"):
            yield Wanted(key, "flash-attn")
        elif "/" in attention:
            yield Wanted(key, "kernels")
    if loading.get("use_kernels"):
        yield Wanted("model_init_kwargs", "kernels")


def missing(values: dict[str, Any]) -> list[Wanted]:
    """Returns those of them that are not installed."""
    return [one for one in wanted(values) if installed(one.package) is None]
