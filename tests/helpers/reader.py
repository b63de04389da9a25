"""What a reader of the documentation has at hand: a folder with the files that its commands and recipes name, small."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from hpt_trl.cli import main
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers.evaluations import save_reward_model
from tests.helpers.pages import write_corpus
from tests.helpers.stage_runs import KEYS, sums

QUESTIONS = 12
REWARDS = '''"""Rewards of the reader's own."""


def brevity(completions, **columns):
    return [1 / (1 + len(str(completion))) for completion in completions]
'''


def recipe_of(stage: str, **changes: Any) -> dict[str, Any]:
    """A small recipe of a stage over the reader's rows; `changes` with the value None leave a key out."""
    values = {**KEYS, "stage": stage, "max_steps": 1, "model_name_or_path": "tiny", "output_dir": f"outputs/{stage}"}
    values |= {"dataset_name": "sums.jsonl", "test_split_size": 6}
    if stage in ("hpt", "grpo", "ppo"):
        values |= {"num_generations": 2, "max_completion_length": 8, "reward_funcs": ["math_answer"]}
    if stage in ("ref_tuning", "critic"):
        values |= {"dataset_name": "solutions.jsonl", "test_split_size": 2}
    if stage == "rho1":
        values |= {"reference_model_name_or_path": "reference", "dataset_layout": "demonstrations"}
        values |= {"reference_cache_dir": "caches/reference"}
    if stage == "evaluate":
        training = (*KEYS, "test_split_size")
        values = {key: value for key, value in values.items() if key not in training or key in ("dtype", "use_cpu")}
        values |= {"max_completion_length": 8, "reward_funcs": ["math_answer"], "per_device_eval_batch_size": 4}
        values.pop("max_steps", None)
    return {key: value for key, value in (values | changes).items() if value is not None}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(folder: Path, tiny_model: str, reference: str) -> None:
    """Writes the files, rows and models that README and docs/ name."""
    from peft import LoraConfig, get_peft_model

    shutil.copytree(tiny_model, folder / "tiny")
    shutil.copytree(reference, folder / "reference")
    for name in ("path/or/hub-id", "outputs/reference"):
        shutil.copytree(tiny_model, folder / name)
    config = folder / "path/or/hub-id/config.json"
    # Room for the default length of completions; a Llama has no weights of positions.
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 2048}))
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["q_proj"]))
    adapter.peft_config["default"].base_model_name_or_path = str(folder / "tiny")
    for name in ("outputs/with-lora", "outputs/qlora"):
        adapter.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(folder / "tiny" / file, folder / name)

    save_reward_model(tiny_model, folder / "outputs" / "reward")

    rows = [row | {"completion": f"{row['completion']}\n#### {row['answer']}"} for row in sums()]
    write_rows(folder / "sums.jsonl", rows)
    own = [{"question": row["prompt"], "solution": row["completion"], "meta": {"final": row["answer"]}} for row in rows]
    write_rows(folder / "my_rows.jsonl", own * 4)
    write_rows(folder / "gsm8k.jsonl", [{"question": r["prompt"], "answer": f"Add.\n#### {r['answer']}"} for r in rows])
    (folder / "path/to").mkdir()
    for name in ("path/to/gsm8k_train.jsonl", "gsm8k_train.jsonl"):
        shutil.copy(folder / "gsm8k.jsonl", folder / name)
    solutions = [
        {
            "instruction": f"Return {number} + 1.",
            "input": "",
            "output": f"{number + 1}" + " " * extra if correct else f"{number}" + " " * extra,
            "problem_id": number,
            "is_correct": correct,
        }
        for number in range(QUESTIONS)
        for correct in (True, False)
        for extra in range(2)
    ]
    write_rows(folder / "solutions.jsonl", solutions)
    problems = [
        {
            "prompt": f'def f():\n    """{number}"""\n',
            "canonical_solution": f"    return {number}\n",
            "entry_point": "f",
        }
        | {"test": f"def check(f):\n    assert f() == {number}"}
        for number in range(QUESTIONS)
    ]
    write_rows(folder / "problems.jsonl", problems)

    write_corpus(folder / "my_pages")
    build_index(folder / "my_pages", folder / "indexes" / "mine", IndexSettings())
    pages = ["sub/doc_1", "sub/doc_2", "sub/doc_3", "sub/doc_4"]
    questions = [
        {"query": f"What is on page {page}?", "prompt": f"What is on page {page}?", "answer": "12"}
        | {"reference_pages": [page], "completion": "<think>I know.</think><answer>12</answer>"}
        for page in pages * 4
    ]
    write_rows(folder / "my_questions.jsonl", questions)

    write_runs(folder)

    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rewards.py").write_text(REWARDS)

    write_recipe(folder / "my_recipe.yaml", recipe_of("hpt", output_dir="outputs/mine", per_device_train_batch_size=2))
    write_recipe(folder / "my_reward.yaml", recipe_of("reward", output_dir="outputs/my-reward"))
    write_recipe(folder / "my_reference.yaml", recipe_of("ref_tuning", output_dir="outputs/my-reference"))
    write_recipe(folder / "my_rho1.yaml", recipe_of("rho1", output_dir="outputs/my-rho1"))
    stages = {"sft": recipe_of("sft"), "ppo": {**recipe_of("ppo"), "model": "from:sft"}}
    for stage in stages.values():
        stage.pop("output_dir")
    del stages["ppo"]["model_name_or_path"]
    write_recipe(
        folder / "my_pipeline.yaml", {"stage": "pipeline", "output_dir": "outputs/my-pipeline", "stages": stages}
    )


def write_runs(folder: Path) -> None:
    """Makes finished runs: `outputs/my-model`, and those of `earlier`, of which a test takes what its page has made."""
    from tests.helpers.stage_runs import LORA

    stages = {"sft": recipe_of("sft", output_dir=None), "dpo": recipe_of("dpo", output_dir=None)}
    del stages["dpo"]["model_name_or_path"]
    stages["dpo"]["model"] = "from:sft"
    recipes = {
        "outputs/my-model": recipe_of("sft", output_dir="outputs/my-model"),
        "earlier/run": recipe_of("sft", output_dir="earlier/run"),
        "earlier/adapter": recipe_of("sft", output_dir="earlier/adapter", **LORA),
        "earlier/pipeline": {"stage": "pipeline", "output_dir": "earlier/pipeline", "stages": stages},
    }
    with chdir(folder):
        for name, values in recipes.items():
            recipe = Path(f"{Path(name).name}.yaml")
            write_recipe(recipe, values)
            assert main(["run", str(recipe)]) == 0, name
            recipe.unlink()


def write_recipe(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture(scope="session")
def reader_files(tmp_path_factory, tiny_model_path, reference_model_path) -> Path:
    """The reader's folder; read only."""
    folder = tmp_path_factory.mktemp("reader")
    build(folder, tiny_model_path, reference_model_path)
    return folder


@pytest.fixture
def reader(reader_files, tmp_path, monkeypatch) -> Path:
    """A copy of the reader's folder: the working directory, where modules are found as well."""
    folder = tmp_path / "reader"
    shutil.copytree(reader_files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return folder
