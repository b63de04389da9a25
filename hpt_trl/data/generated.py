"""The built-in data sets, which are generated: by name, or by the name of a family and a part of it.

The module imports nothing heavy, so that a name is known without the second that `datasets` takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

# Name -> module and function `(options, *, seed) -> (training rows, held-out rows or None)`.
GENERATED = {
    "arithmetic": "hpt_trl.data.tasks:arithmetic",
    "prompts": "hpt_trl.data.tasks:prompts",
    "pages": "hpt_trl.data.pages.source:pages",
}
# Beginning of a name -> the same, with what follows it as the first argument.
FAMILIES = {
    "reasoning_gym:": "hpt_trl.data.tasks:reasoning_gym",
    "stories:": "hpt_trl.data.stories:stories",
    "functions:": "hpt_trl.data.functions:functions",
}
NAMES = (*GENERATED, *FAMILIES)


def is_generated(name: str) -> bool:
    """Whether a `dataset_name` is one of these."""
    return name in GENERATED or name.startswith(tuple(FAMILIES))


def generate(name: str, options: dict[str, Any], *, seed: int) -> "dict[str, Dataset]":
    """Make a data set.

    Args:
        options: `dataset_options` of the recipe.

    Returns:
        The split `train` and, where the data has held-out rows, `test`.

    Raises:
        UserError: options that the data set refuses.
    """
    family = next((family for family in FAMILIES if name.startswith(family)), None)
    module, _, function = (GENERATED[name] if family is None else FAMILIES[family]).partition(":")
    make = vars(import_module(module))[function]
    part = [] if family is None else [name.removeprefix(family)]
    train, test = make(*part, options, seed=seed)
    return {"train": train} if test is None else {"train": train, "test": test}
