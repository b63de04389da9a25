"""docs/outputs.md has every file that a run leaves, and every key of its results.json."""

import json
from fnmatch import fnmatch
from pathlib import Path

from hpt_trl.cli import main
from tests.helpers.documents import tokens
from tests.helpers.processes import ROOT
from tests.helpers.reader import recipe_of, write_recipe

EVERYTHING = {"push_to_hub": True, "report_to": "tensorboard", "save_strategy": "steps", "save_steps": 6}
# Steps too small for a margin, of which ten logs are a warning.
WARNED = {"max_steps": 12, "learning_rate": 1e-30}


def listed(heading: str) -> set[str]:
    """What the first column of a table of the page names, by the heading of that column."""
    found, first, inside = set(), False, False
    for token in tokens(ROOT / "docs" / "outputs.md"):
        if token.type == "tr_open":
            first = True
        elif token.type == "inline" and first:
            first = False
            inside = inside or token.content == heading
            found |= {part.content for part in token.children or [] if inside and part.type == "code_inline"}
        elif token.type == "table_close":
            inside = False
    return found


def test_files_and_keys_of_a_run_are_listed(reader, hub):
    write_recipe(Path("run.yaml"), recipe_of("dpo", output_dir="outputs/run", **EVERYTHING, **WARNED))
    assert main(["run", "run.yaml"]) == 0
    folder = Path("outputs/run")
    assert main(["push", str(folder)]) == 0 and main(["report", str(folder)]) == 0
    left, names = {path.name for path in folder.iterdir()}, listed("In the output folder")
    unlisted = {name for name in left if not any(fnmatch(name, pattern.rstrip("/")) for pattern in names)}
    assert not unlisted
    # What the page has most to say of is really among them.
    assert left >= {"recipe.yaml", "trackers.json", "hub.json", "report.html", "README.md", "warnings.jsonl", "runs"}
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() <= listed("Key of results.json")
    assert results["warnings"] and set(results["warnings"][0]) == {"step", "kind", "message"}
