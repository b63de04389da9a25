"""Every key that this package declares is named on a page of docs/."""

from hpt_trl.recipes.declared import declared_by
from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from tests.helpers.documents import PAGES, tokens
from tests.helpers.processes import ROOT


def declared_here() -> set[str]:
    """The keys that the package's own classes declare, not those that they have from TRL's and Transformers'."""
    found = set()
    for name in STAGE_MODULES:
        stage = load_stage(name)
        known = declared_by(stage).keys
        for kind in (*stage.argument_class.__mro__, *stage.config_class.__mro__):
            if kind.__module__.startswith("hpt_trl."):
                found |= set(vars(kind).get("__annotations__", ())) & set(known)
    return found


def named() -> set[str]:
    """What stands in backticks within sentences and tables, of `key: value` the key."""
    pages = [page for page in PAGES if page.parent == ROOT / "docs"]
    parts = [part for page in pages for token in tokens(page) for part in token.children or []]
    return {part.content.partition(":")[0] for part in parts if part.type == "code_inline"}


def test_every_key_of_the_package_is_named():
    declared = declared_here()
    # One of data, of rewards, of every stage, and of a stage's own config.
    assert {"column_mapping", "judge_url", "eval_samples", "switch_gate"} <= declared
    assert "learning_rate" not in declared
    missing = sorted(declared - named())
    assert not missing, f"name them in backticks on a page of docs/: {', '.join(missing)}"
