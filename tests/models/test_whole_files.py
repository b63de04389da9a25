"""Models whose files are not what was written: refused by whatever would load them, push them or keep them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hpt_trl.digests import damage_of, digest_of, note_digests
from hpt_trl.errors import UserError
from hpt_trl.hub.destination import Destination
from hpt_trl.hub.pushing import push
from hpt_trl.models.merging import merge_adapter
from hpt_trl.models.trainable import refuse_broken
from hpt_trl.models.value_model import load_value_model
from hpt_trl.models.whole_files import refuse_damaged_model, shown_damage, tell_changed_recipe
from hpt_trl.pipeline.record import damage
from hpt_trl.retrieval.reranking import QueryLikelihood
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs import runner
from hpt_trl.runs.evaluating import load_named
from hpt_trl.token_scores.config import ReferenceConfig
from hpt_trl.token_scores.reference import load_reference
from tests.helpers.stage_runs import LORA, results
from tests.helpers.tiny import save_tiny_model


def flip(file: Path) -> None:
    """Another byte in the middle; the file keeps its size and, of weights, their number."""
    contents = bytearray(file.read_bytes())
    contents[len(contents) * 3 // 4] ^= 0x01
    file.write_bytes(contents)


@pytest.fixture
def finished(recipe, tmp_path):
    """A run's folder, finished."""

    def run(stage: str = "sft", **changes) -> Path:
        runner.run(recipe(stage, max_steps=1, **changes), [])
        return tmp_path / stage

    return run


def test_a_finished_run_says_what_its_files_are(finished):
    folder = finished()
    noted = json.loads((folder / "digests.json").read_text())["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= noted.keys()
    assert results(folder)["digests"] and damage_of(folder, contents=True) is None and shown_damage(folder) is None
    # What comes later beside them is no damage.
    (folder / "report.html").write_text("")
    assert shown_damage(folder) is None


def test_whatever_reads_a_damaged_model_refuses_it(finished, recipe, tmp_path):
    folder = finished()
    flip(folder / "model.safetensors")
    said = r"model\.safetensors is not what was written .* Copy the folder anew, or make its model again\."
    values = {"stage": "evaluate", "measures": ["perplexity"], "dataset_name": str(tmp_path / "sums.jsonl")}
    values |= {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "e"), "use_cpu": True}
    evaluation = tmp_path / "e.yaml"
    evaluation.write_text(yaml.safe_dump(values | {"max_completion_length": 8}))
    readers = [
        lambda: runner.run(recipe("sft", model_name_or_path=str(folder), output_dir=str(tmp_path / "next")), []),
        lambda: runner.run(str(evaluation), []),
        lambda: load_named(str(folder), torch.device("cpu")),
        lambda: push(folder, Destination("a/b")),
        lambda: load_value_model(str(folder), trainable=False),
    ]
    for read in readers:
        with pytest.raises(UserError, match=said):
            read()
    assert "is not what was written" in damage(folder)
    # Put right, it is read again.
    flip(folder / "model.safetensors")
    assert damage(folder) is None


def test_a_damaged_adapter_is_not_merged(finished, tmp_path):
    folder = finished(**LORA)
    whole = tmp_path / "merged"
    merge_adapter(folder, whole)
    assert damage_of(whole, contents=True) is None and (whole / "digests.json").is_file()
    flip(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is not what was written"):
        merge_adapter(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_damaged_reward_model_scores_nothing(finished):
    folder = finished("reward")
    flip(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is not what was written"):
        RewardModel(str(folder))(["What is 1 + 1?"], ["It is 2."])


@pytest.mark.parametrize("damaged", ["cut", "deleted", "no digests"])
def test_what_shows_is_told_before_anything_is_loaded(finished, recipe, tmp_path, damaged):
    folder = finished()
    if damaged == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    elif damaged == "deleted":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "digests.json").unlink()
    said = {"cut": r"model\.safetensors has 5,000 bytes", "deleted": r"tokenizer\.json is missing"}
    with pytest.raises(UserError, match=said.get(damaged, r"digests\.json is missing")):
        runner.run(recipe("sft", model_name_or_path=str(folder), output_dir=str(tmp_path / "next")), [])
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("damaged", ["cut", "header", "nothing"])
def test_another_program_s_torn_file_is_known_by_its_header(tiny_model_path, recipe, tmp_path, damaged):
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_model_path, folder)
    file = folder / "model.safetensors"
    contents = file.read_bytes()
    file.write_bytes({"cut": contents[:-100], "header": b"\xff" * 100 + contents[100:], "nothing": b""}[damaged])
    with pytest.raises(UserError, match=r"model\.safetensors (has .* bytes, its header tells of|is torn)"):
        runner.run(recipe("sft", model_name_or_path=str(folder)), [])


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "are NaN or infinite"), (0.0, "are 0")])
def test_weights_that_are_none_are_refused(tiny_model_path, recipe, tmp_path, value, said):
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_model_path, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"foreign: .*weights of model\.embed_tokens\.weight {said}"):
        runner.run(recipe("sft", model_name_or_path=str(folder)), [])
    refuse_broken(AutoModelForCausalLM.from_pretrained(tiny_model_path), "whole")


@pytest.fixture
def adapters(tmp_path, tiny_model_path):
    """Writes an adapter over a copy of the tiny model, both with digests, and a reader that takes it."""

    def write(kind: str) -> tuple[Path, Path]:
        base, folder = tmp_path / f"{kind}-base", tmp_path / kind
        shutil.copytree(tiny_model_path, base)
        loader = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}[kind]
        model = loader.from_pretrained(base, **({"num_labels": 1} if kind == "SEQ_CLS" else {}))
        get_peft_model(model, LoraConfig(task_type=kind, target_modules=["q_proj"])).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        note_digests(base)
        note_digests(folder)
        return base, folder

    return write


@pytest.mark.parametrize("damaged", ["adapter", "base"])
@pytest.mark.parametrize("reader", ["merge", "reward", "reference", "evaluation"])
def test_adapter_and_base_are_read_by_whatever_loads_them(adapters, tmp_path, reader, damaged):
    base, folder = adapters("SEQ_CLS" if reader == "reward" else "CAUSAL_LM")
    flip(base / "model.safetensors" if damaged == "base" else folder / "adapter_model.safetensors")
    config = ReferenceConfig(reference_model_name_or_path=str(folder), output_dir=str(tmp_path), use_cpu=True)
    read = {
        "merge": lambda: merge_adapter(folder, tmp_path / "merged"),
        "reward": lambda: RewardModel(str(folder))(["What is 1 + 1?"], ["It is 2."]),
        "reference": lambda: load_reference(config, torch.device("cpu")),
        "evaluation": lambda: load_named(str(folder), torch.device("cpu")),
    }[reader]
    with pytest.raises(UserError, match=r"model\.safetensors is not what was written"):
        read()
    assert not (tmp_path / "merged").exists()
    flip(base / "model.safetensors" if damaged == "base" else folder / "adapter_model.safetensors")
    read()


@pytest.mark.parametrize("digests", [False, True])
def test_an_adapter_lies_over_the_weights_that_it_was_trained_over(recipe, tiny_model_path, tmp_path, digests):
    base, moved, folder = tmp_path / "base", tmp_path / "moved", tmp_path / "sft"
    shutil.copytree(tiny_model_path, base)
    if digests:
        note_digests(base)
    runner.run(
        recipe("sft", model_name_or_path=str(base), max_steps=2, save_strategy="steps", save_steps=2, **LORA), []
    )
    shutil.copytree(base, moved)
    save_tiny_model(base, seed=1)
    if digests:
        note_digests(base)
    for adapter in (folder, folder / "checkpoint-2"):
        with pytest.raises(UserError, match=r"other weights than those that lie in its base model, .*base"):
            merge_adapter(adapter, tmp_path / "merged")
        with pytest.raises(UserError, match="adapter over other weights"):
            load_named(str(adapter), torch.device("cpu"))
    assert not (tmp_path / "merged").exists() and damage(folder) is None
    # Where it lies does not matter.
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(moved)}))
    merge_adapter(folder, tmp_path / "merged")


def test_weights_that_are_no_numbers_are_refused_by_whatever_loads_them(tiny_model_path, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_model_path, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"model.norm.weight": weights["model.norm.weight"] * float("nan")}, folder / "model.safetensors"
    )
    config = ReferenceConfig(reference_model_name_or_path=str(folder), output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match=r"model\.norm\.weight are NaN"):
        load_reference(config, torch.device("cpu"))
    with pytest.raises(UserError, match=r"reranker: .*model\.norm\.weight are NaN"):
        QueryLikelihood(str(folder))
    with pytest.raises(UserError, match=r"foreign: weights of norm\.weight are NaN"):
        load_value_model(str(folder), trainable=False)
    with pytest.raises(UserError, match=r"model\.norm\.weight are NaN"):
        load_named(str(folder), torch.device("cpu"))


def test_a_config_that_was_changed_by_hand_is_told_and_taken_as_it_stands(adapters, tmp_path, caplog):
    base, folder = adapters("CAUSAL_LM")
    moved = base.rename(tmp_path / "moved")
    config = folder / "adapter_config.json"
    written = json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(moved)})
    config.write_text(written)
    load_named(str(folder), torch.device("cpu"))
    assert f"{config} is not what its run wrote" in caplog.text
    for torn in ("", written[: len(written) // 2], "\0" * len(written), "3"):
        config.write_text(torn)
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            refuse_damaged_model(folder)
    config.write_text(written)
    template = folder / "chat_template.jinja"
    template.write_text(f"{template.read_text()} ")
    refuse_damaged_model(folder)
    for torn in ("", "\n"):
        template.write_text(torn)
        with pytest.raises(UserError, match=r"chat_template\.jinja has"):
            refuse_damaged_model(folder)
    template.write_text(" {{ messages }}")
    flip(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"is not what was written .* its model again\.$"):
        load_named(str(folder), torch.device("cpu"))


def test_a_recipe_that_has_changed_is_told(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text("stage: sft\n")
    for noted in ({}, {"recipe_digest": digest_of(tmp_path / "recipe.yaml")}):
        (tmp_path / "results.json").write_text(json.dumps(noted))
        tell_changed_recipe(tmp_path)
    assert not caplog.records
    (tmp_path / "recipe.yaml").write_text("stage: dpo\n")
    tell_changed_recipe(tmp_path)
    assert f"{tmp_path / 'recipe.yaml'} is not what its run wrote" in caplog.text
