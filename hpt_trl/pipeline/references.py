"""References between a pipeline's stages, `from:<stage>`, as a key's value holds them."""

from typing import Any

from hpt_trl.recipes.pipeline_keys import FROM


def references_of(value: Any) -> list[str]:
    """Returns the stages that a key's value names, `from:sft` or a list of such."""
    items = value if isinstance(value, list) else [value]
    return [item.removeprefix(FROM).strip() for item in items if isinstance(item, str) and item.startswith(FROM)]
