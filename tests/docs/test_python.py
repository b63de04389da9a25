"""Every block of Python in README and docs/ is executed, with small ones in place of its models and rows.

A page of blocks has a line in `SETUPS`: what is written in place of names, and the names that a block takes as given. A
block without one fails. What is replaced must stand in the block.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from tests.helpers.documents import Block, blocks
from tests.helpers.environments import Doors
from tests.helpers.rho1 import TEXTS
from tests.helpers.stage_runs import sums

SMALL = "max_steps=1, bf16=False, use_cpu=True, report_to='none', per_device_train_batch_size=4, "
ROLLOUTS = SMALL + "max_completion_length=8, num_generations=2, "
Namespace = dict[str, Any]


def length(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(len(ids) % 3) for ids in completion_ids]


def rows(*columns: str) -> Dataset:
    return Dataset.from_list([{column: row[column] for column in columns} for row in sums()])


def nothing(folder: Path) -> Namespace:
    return {}


def hybrid(folder: Path) -> Namespace:
    return {"reward": length, "dataset": rows("prompt", "completion")}


def ppo(folder: Path) -> Namespace:
    return {"brevity": length, "prompts": rows("prompt")}


def mtp(folder: Path) -> Namespace:
    torch.manual_seed(0)
    given = AutoTokenizer.from_pretrained(folder / "tiny")("What is 1 + 1?", return_tensors="pt")
    return {"rows": rows("prompt", "completion"), "prompt": {**given, "max_new_tokens": 6}}


def rho1(folder: Path) -> Namespace:
    return {"corpus": Dataset.from_dict({"text": TEXTS * 8})}


def vrag(folder: Path) -> Namespace:
    from hpt_trl import HybridPostConfig

    keys = {"max_completion_length": 16, "num_generations": 2, "unify_strategy": "no", "use_cpu": True, "bf16": False}
    args = HybridPostConfig("outputs/own", max_steps=1, report_to="none", per_device_train_batch_size=4, **keys)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "Open."}], "kind": "a"}] * 8)
    own = {"Shop": lambda: Doors(pictures=False), "model": str(folder / "tiny"), "rewards": length}
    return {**own, "args": args, "dataset": data}


def code(folder: Path) -> Namespace:
    problem = {
        "prompt": 'def one():\n    """1"""\n',
        "entry_point": "one",
        "test": "def check(f):\n    assert f() == 1",
    }
    return {"rows": [problem, problem], "completions": ["    return 1\n", "    return 2\n"]}


def trained(names: Namespace) -> None:
    assert names["trainer"].state.global_step == 1


def drafted(names: Namespace) -> None:
    trained(names)
    assert names["model"].speculation.tokens_per_call >= 1


def found(names: Namespace) -> None:
    # The two pages that name the year.
    assert {hit.name for hit in names["hits"]} >= {"sub/doc_1", "sub/doc_3"} and names["page"].mode == "RGB"


def told_apart(names: Namespace) -> None:
    assert [[verdict is True for verdict in verdicts] for verdicts in names["verdicts"]] == [[True], [False]]


def solves(names: Namespace) -> None:
    assert names["solve"]([1, 2, 4]) == (2 + 3) + (4 + 3)


def rewards_brevity(names: Namespace) -> None:
    long, short = names["brevity"](
        completions=["a" * 75, [{"role": "assistant", "content": "a" * 30}]], answer=["1", "2"]
    )
    assert (long, short) == (0.5, 1.0)


def pushed(names: Namespace) -> None:
    repo = names["hub"].repos["me/my-model"]
    assert repo.private and repo.commit("main").oid in names["pushed"].commit
    assert "model.safetensors" in repo.files()


def made(names: Namespace) -> None:
    names["trainer"].train()
    trained(names)


# Page -> what gives a block its names, what is written in place of what, what has to be true of it after.
SETUPS = {
    "hybrid.md": (
        hybrid,
        {'"Qwen/Qwen2.5-Math-1.5B"': '"tiny"', '"outputs/run", ': f'"outputs/run", {ROLLOUTS}'},
        trained,
    ),
    "ppo.md": (
        ppo,
        {'"HuggingFaceTB/SmolLM2-135M-Instruct"': '"tiny"', '"outputs/ppo", ': f'"outputs/ppo", {ROLLOUTS}'},
        trained,
    ),
    "mtp.md": (mtp, {'"HuggingFaceTB/SmolLM2-135M"': '"tiny"', '"outputs/mtp", ': f'"outputs/mtp", {SMALL}'}, drafted),
    "rho1.md": (
        rho1,
        {'"TinyLlama/TinyLlama_v1.1"': '"tiny"', '"outputs/rho1",\n': f'"outputs/rho1", {SMALL}\n'}
        | {'"outputs/reference"': '"reference"', "max_length=2048": "max_length=64, reference_cache_dir='caches/own'"},
        trained,
    ),
    "vrag.md": (vrag, {}, made),
    "retrieval.md": (nothing, {}, found),
    "code.md": (code, {}, told_apart),
    "rewards.md": (nothing, {}, rewards_brevity),
    "data.md": (nothing, {}, solves),
    "hub.md": (nothing, {}, pushed),
}
# Pages whose blocks find a Hub, the stand-in of tests/helpers.
PUSHING = {"hub.md"}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block, reader, request):
    assert block.page.name in SETUPS, f"{block}: a line in SETUPS says what it is run with"
    prepare, replacements, holds = SETUPS[block.page.name]
    text = block.text
    for written, put in replacements.items():
        assert text.count(written) == 1, f"{block} holds {written!r} {text.count(written)} times"
        text = text.replace(written, put)
    names = prepare(reader)
    if block.page.name in PUSHING:
        names["hub"] = request.getfixturevalue("hub")
    exec(compile(text, str(block), "exec"), names)
    holds(names)
