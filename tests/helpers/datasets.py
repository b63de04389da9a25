"""Writing and loading of small datasets, shared by the tests of data."""

import json

import pytest

from hpt_trl.data.loading import load_splits
from hpt_trl.errors import UserError
from hpt_trl.recipes.arguments import RecipeArguments


def load(
    name,
    *,
    seed=0,
    needs_demonstration=True,
    demonstration_column="completion",
    layout="prompts",
    **keys,
):
    return load_splits(
        RecipeArguments(**{"dataset_name": str(name), **keys}),
        seed=seed,
        needs_demonstration=needs_demonstration,
        demonstration_column=demonstration_column,
        layout=layout,
    )


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(name, **keys):
    with pytest.raises(UserError) as caught:
        load(name, **keys)
    return str(caught.value)


def chat(role="user", content="Hi"):
    return [{"role": role, "content": content}]
