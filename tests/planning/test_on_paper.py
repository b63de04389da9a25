"""`hpt-trl check` of recipes whose model, rows or packages are not here: what they take, cost and lack."""

import re
from importlib.util import find_spec

import pytest

from hpt_trl.cli import main
from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning.known_models import known_config, known_model
from hpt_trl.recipes.bundled import bundled_recipes, find_recipe, recipe_name
from hpt_trl.settings.file import read_recipe_file

# Published numbers of parameters, of the Hub; the fifth by hand: 2 x 32000 x 2560 + 32 x (4 x 2560^2 + 3 x 2560 x 6912
# + 2 x 2560) + 2560.
PUBLISHED = {
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "princeton-nlp/Sheared-LLaMA-2.7B": 2_701_560_320,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without models and data."""
    monkeypatch.chdir(tmp_path)


def checked(capsys, *words: str) -> str:
    assert main(["check", *words]) == 0
    return capsys.readouterr().out


def fact(output: str, name: str) -> str:
    found = re.search(rf"^{name}: +(.*(?:\n  .*)*)", output, flags=re.MULTILINE)
    assert found, output
    return found[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_count_as_published(name):
    assert count_parameters(known_config(name)).total == PUBLISHED[name]


def test_the_models_of_all_large_recipes_are_known():
    for path in bundled_recipes():
        file = read_recipe_file(path)
        name = file.values.get("model_name_or_path")
        if "GPUs with 80 GB" in path.read_text() and name is not None:
            assert known_model(name, path) in PUBLISHED, recipe_name(path)
    path = find_recipe("vrag/qwen2.5-vl-7b-grpo-lora")
    assert known_model("outputs/vrag-qwen2.5-vl-7b-sft-lora-merged", path) == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert known_model("outputs/of-nobody", path) is None


def test_hpt_of_a_paper(capsys):
    output = checked(capsys, "hybrid/qwen2.5-math-7b-openr1")
    assert fact(output, "model").startswith("models/qwen2.5-math-7b (qwen2, 7.62B parameters as published of Qwen/")
    assert "8 processes x 4 rows x 16 accumulation steps = 512 completions = 64 prompts x 8" in fact(output, "batch")
    assert fact(output, "tokens") == "1,179,648 a step (512 rows of 2,304), 1,179,648,000 in all"
    assert "vLLM's own share of the GPU, 30%" in fact(output, "peak memory")
    assert fact(output, "cost").startswith("90.9 GPU hours, 40.9 s a step")
    missing = fact(output, "missing here")
    assert "hf download Qwen/Qwen2.5-Math-7B --local-dir models/qwen2.5-math-7b" in missing
    assert "data Elliott/Openr1-Math-46k-8192: not in the cache" in missing
    assert ("vLLM: vllm is not installed" in missing) == (find_spec("vllm") is None)


def test_time_by_hand(capsys):
    output = checked(capsys, "rho1/mistral-7b-openwebmath", "--max_steps", "100")
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 32000 * 4096
    forward = 2 * linear + 2 * 4096 * 4096 * 32
    seconds = 256 * 4096 * 4 * forward / (8 * 989e12 * 0.4)
    cost = fact(output, "cost")
    assert cost.startswith(f"{100 * 8 * seconds / 3600:,.1f} GPU hours, {seconds:.1f} s a step, on 8 x H100")
    assert "reference model outputs/mistral-7b-math-reference: not there yet" in fact(output, "missing here")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vrag/qwen2.5-vl-7b-hpt", "search index indexes/pages: not there yet"),
        ("mtp/verifiable-7b-codecontests", "value model outputs/critic-sheared-llama-2.7b: not there yet"),
        ("critic/sheared-llama-2.7b-codecontests", "data deepmind/code_contests: not in the cache"),
        ("pretrain/llama-1b-fineweb-edu", "tokenizer HuggingFaceTB/SmolLM2-1.7B: not in the cache"),
        ("ppo/tinyllama-1.1b-positive-words", "hf download TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ],
)
def test_other_stages_of_papers(name, said, capsys):
    output = checked(capsys, name)
    assert said in fact(output, "missing here")
    assert "GPU hours" in fact(output, "cost") and "GiB per process" in fact(output, "peak memory")
    assert "a step" in fact(output, "tokens")


def test_an_evaluation_without_its_rows(capsys):
    output = checked(capsys, "evaluate/gsm8k")
    assert fact(output, "measures") == "avg@k, maj@k, pass@k" and "GiB per process" in fact(output, "peak memory")
    assert "data openai/gsm8k: not in the cache" in fact(output, "missing here")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_recipe_that_lacks_a_package_alone_is_checked_in_full(capsys):
    output = checked(capsys, "quickstart", "--vllm", "colocate")
    assert "first prompt" in output and "vLLM: vllm is not installed" in fact(output, "missing here")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hybrid/qwen2.5-math-7b-openr1", "--model_name_or_path", "./nowhere"], "there is no folder ./nowhere"),
        (["hybrid/qwen2.5-math-7b-openr1", "--dataset_name", "nope.jsonl"], "there is no file nope.jsonl"),
        (["hybrid/qwen2.5-math-7b-openr1", "--unify_strategy", "swich"], "swich"),
        (["hybrid/qwen2.5-math-7b-openr1", "--output_dir", "."], "holds no run of hpt-trl"),
        (["vrag/qwen2.5-vl-7b-hpt", "--learning_rate", "0"], "0 is not allowed"),
    ],
)
def test_mistakes_of_the_recipe_are_still_mistakes(words, said, capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err
