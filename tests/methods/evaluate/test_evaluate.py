"""`stage: evaluate` by the command line: what is measured, alone and by a training, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.evaluation.measures import pass_at_k
from hpt_trl.recipes.profiles import Profile
from hpt_trl.recipes.resolving import read_recipe
from tests.helpers.evaluations import HERE, results, run, samples, save_reward_model
from tests.helpers.stage_runs import LORA, sums
from tests.helpers.tiny import CHAT_TEMPLATE, CORPUS


def test_figures_follow_from_the_completions(evaluation, tmp_path, capsys):
    run("eval", evaluation())
    drawn, measured = samples(tmp_path / "evaluate"), results(tmp_path / "evaluate")["measures"]
    assert [(line["index"], line["generation"]) for line in drawn] == [(i, g) for i in range(6) for g in range(4)]
    solved = [sum(sum(line["ids"]) % 2 for line in drawn[4 * row : 4 * row + 4]) for row in range(6)]
    assert len(set(solved)) > 1
    for k in (1, 2, 4):
        assert measured[f"pass@{k}"] == pytest.approx(sum(pass_at_k(4, c, k) for c in solved) / 6)
        low, high = measured[f"pass@{k}_interval"]
        assert low <= measured[f"pass@{k}"] <= high
    assert measured["avg@4"] == pytest.approx(sum(solved) / 24) == pytest.approx(measured["pass@1"])
    scored = [json.loads(line) for line in (tmp_path / "evaluate" / "scored.jsonl").read_text().splitlines()]
    assert [line["solved"] for line in scored] == [bool(sum(line["ids"]) % 2) for line in drawn]
    assert [line["completion"] for line in scored] == [line["completion"] for line in drawn]
    shown = capsys.readouterr().out
    assert f"pass@2:        {measured['pass@2']:.1%}  (95 % interval" in shown
    run("report", str(tmp_path / "evaluate"))
    assert f"pass@2:        {measured['pass@2']:.1%}  (95 % interval" in capsys.readouterr().out


def test_what_the_success_reward_does_not_judge_is_told(evaluation, tmp_path, capsys):
    keys = {"reward_funcs": [f"{HERE}.judges_some", f"{HERE}.length"]}
    run("eval", evaluation(**keys))
    measured, drawn = results(tmp_path / "evaluate")["measures"], samples(tmp_path / "evaluate")
    unjudged = sum(sum(line["ids"]) % 2 == 0 for line in drawn)
    assert 0 < unjudged < 24 and measured["avg@4"] == pytest.approx(1 - unjudged / 24)
    assert (measured["unscored"], measured["undecided"]) == (0, unjudged)
    said = f"undecided:     {unjudged} completions have no value of judges_some, and count as not solved"
    assert said in capsys.readouterr().out


def test_a_reward_model_judges_with_the_weight_of_the_recipe(evaluation, tmp_path, tiny_model_path):
    judge = tmp_path / "judge"
    save_reward_model(tiny_model_path, judge)
    keys = {"reward_funcs": [f"{HERE}.length"], "reward_model_name_or_path": [str(judge)], "k": [1]}
    keys |= {"measures": ["avg@k", "win_rate"], "against": "demonstrations"}
    found = {}
    for name, weights in {"function": [1, 0], "model": [0, 1], "both": [0.5, 2]}.items():
        run("eval", evaluation(name, **keys, reward_weights=weights, success_reward="judge", success_threshold=0.0))
        found[name] = results(tmp_path / name)["measures"]
        lines = [json.loads(line) for line in (tmp_path / name / "scored.jsonl").read_text().splitlines()]
        for line in lines:
            sides = line["rewards"]["length"], line["rewards"]["judge"]
            assert line["reward"] == pytest.approx(sum(a * b for a, b in zip(weights, sides, strict=True)))
            assert line["solved"] == (sides[1] >= 0)
    assert 0 < found["model"]["avg@4"] < 1
    assert found["model"]["win_rate"] != found["function"]["win_rate"]
    # By itself, as the only one.
    alone = {"reward_funcs": None, "success_threshold": 0.0}
    run("eval", evaluation("alone", **keys | alone))
    measured = results(tmp_path / "alone")["measures"]
    assert (measured["win_rate"], measured["avg@4"]) == (found["model"]["win_rate"], found["model"]["avg@4"])


def test_perplexity_of_answers_and_documents(evaluation, tmp_path):
    run("eval", evaluation("answers", measures=["perplexity"], reward_funcs=None, n=1, k=[1], temperature=0.0))
    measured = results(tmp_path / "answers")["measures"]
    assert measured["perplexity"] > 1 and measured["scored_tokens"] > 0 and "bits_per_byte" not in measured
    assert not (tmp_path / "answers" / "samples.jsonl").exists()
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": row["completion"]}) + "\n" for row in sums(6)))
    documents = {"dataset_name": str(text), "dataset_layout": "documents", "reward_funcs": None, "measures": None}
    run("eval", evaluation("documents", **documents, n=1, k=[1], temperature=0.0))
    assert results(tmp_path / "documents")["measures"]["bits_per_byte"] > 0


def test_win_rate_against_itself_another_and_the_demonstrations(evaluation, tmp_path, reference_model_path, capsys):
    keys = {"measures": ["win_rate"], "reward_funcs": [f"{HERE}.length"], "k": [1]}
    run("eval", evaluation("first", **keys | {"measures": ["avg@k"]}, success_threshold=3.0))
    run("eval", evaluation("itself", **keys, against=str(tmp_path / "first")))
    itself = results(tmp_path / "itself")["measures"]
    # The same completions: every pair has its mirror image.
    assert itself["win_rate"] == pytest.approx(0.5)
    run("eval", evaluation("other", **keys, model_name_or_path=reference_model_path, against=str(tmp_path / "first")))
    run("eval", evaluation("back", **keys, against=str(tmp_path / "other")))
    other, back = (results(tmp_path / name)["measures"]["win_rate"] for name in ("other", "back"))
    assert other + back == pytest.approx(1.0)
    run("eval", evaluation("demonstrations", **keys, against="demonstrations"))
    assert 0 <= results(tmp_path / "demonstrations")["measures"]["win_rate"] <= 1
    assert main(["eval", evaluation("none", **keys, against=str(tmp_path / "nothing"))]) == 2
    assert "holds no finished evaluation" in capsys.readouterr().err


def test_majorities_read_answers(evaluation, tmp_path, tiny_model_path):
    keys = {"reward_funcs": ["math_answer"], "measures": ["maj@k"], "k": [1, 4]}
    run("eval", evaluation(**keys))
    assert results(tmp_path / "evaluate")["measures"]["maj@4"] == 0
    # The completions of a model that knows more: the answer of row i is i + 1.
    right, none = ["#### {}", "So \\boxed{{{}}}.", "It is {}/1.\n#### {}.0"], "I do not know."
    answers = [
        [right[0], right[1], "#### 50", none],
        [right[0], "#### 50", "\\boxed{{51}}", none],
        ["#### 50", right[1], "#### 50.0", right[2]],
        [none] * 4,
        ["#### 50", "\\boxed{{50}}", right[0], none],
        [right[0], right[1], right[2], right[0]],
    ]
    tokenizer, file = AutoTokenizer.from_pretrained(tiny_model_path), tmp_path / "evaluate" / "samples.jsonl"
    drawn = samples(tmp_path / "evaluate")
    for line, text in zip(drawn, [text for row in answers for text in row], strict=True):
        text = text.format(line["index"] + 1, line["index"] + 1)
        line |= {"completion": text, "ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]}
        del line["digest"]  # Of what was drawn.
    file.write_text("".join(json.dumps(line) + "\n" for line in drawn))
    run("eval", evaluation(**keys))
    measured = results(tmp_path / "evaluate")["measures"]
    assert measured["maj@4"] == pytest.approx((1 + 1 / 3 + 1 / 2 + 0 + 0 + 1) / 6)
    assert measured["maj@1"] == pytest.approx((2 + 1 + 2 + 0 + 1 + 4) / 24)
    assert measured["without_answer"] == pytest.approx(7 / 24)


def test_stop_texts_cut_and_end_completions(evaluation, tmp_path):
    keys = {"measures": ["avg@k"], "max_completion_length": 24}
    run("eval", evaluation("free", **keys))
    common = max(
        "abcdefghijklmnopqrstuvwxyz 0123456789",
        key=lambda letter: sum(letter in line["completion"] for line in samples(tmp_path / "free")),
    )
    run("eval", evaluation("stopped", **keys, stop=[common]))
    free, stopped = samples(tmp_path / "free"), samples(tmp_path / "stopped")
    assert all(common not in line["completion"] for line in stopped)
    ended = [line for line in stopped if common in line["completion"] or not line["truncated"]]
    # Cut where they were cut there, whatever ends the others.
    keys |= {"measures": ["win_rate"], "k": [1], "reward_funcs": [f"{HERE}.characters"]}
    run("eval", evaluation("free", **keys, against=str(tmp_path / "stopped")))
    lines = [json.loads(line) for line in (tmp_path / "free" / "scored.jsonl").read_text().splitlines()]
    shares = []
    for row in range(6):
        mine, theirs = ([len(line["completion"]) for line in side[4 * row : 4 * row + 4]] for side in (lines, stopped))
        shares.append(sum(0.5 if a == b else a > b for a in mine for b in theirs) / 16)
    assert results(tmp_path / "free")["measures"]["win_rate"] == pytest.approx(sum(shares) / 6)
    assert ended and sum(len(line["ids"]) for line in stopped) < sum(len(line["ids"]) for line in free)


def test_stop_texts_that_no_tokens_write_are_refused(evaluation, tmp_path, tiny_model_path, capsys):
    folder = tmp_path / "characters"
    shutil.copytree(tiny_model_path, folder)
    # Characters of its texts alone, where the other has all bytes.
    characters = Tokenizer(models.BPE(unk_token="<unk>"))
    characters.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<end>", "<unk>"], show_progress=False)
    characters.train_from_iterator([*CORPUS, "abcdefghijklmnopqrstuvwxyz"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=characters,
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    keys = {"model_name_or_path": str(folder), "measures": ["avg@k"]}
    for text in ("日本", "日a", "a日"):
        assert main(["eval", evaluation(**keys, stop=["a", text])]) == 2
        said = capsys.readouterr().err
        assert "`stop`" in said and f"'{text}' cannot end a completion" in said
    assert not (tmp_path / "evaluate").exists()
    run("eval", evaluation(**keys, stop=["a", "is"]))


def test_an_adapter_is_measured_over_its_base(evaluation, tmp_path, tiny_model_path):
    rows = tmp_path / "sums.jsonl"
    sft = tmp_path / "sft.yaml"
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(rows), "max_steps": 3}
    keys |= {"output_dir": str(tmp_path / "adapter"), "learning_rate": 0.05, "dtype": "float32", "use_cpu": True}
    sft.write_text(yaml.safe_dump(keys | LORA | {"report_to": "none", "bf16": False, "save_strategy": "no"}))
    run("run", str(sft))
    run("merge", str(tmp_path / "adapter"), str(tmp_path / "merged"))
    keys = {"measures": ["perplexity"], "reward_funcs": None, "n": 1, "k": [1], "temperature": 0.0}
    losses = {}
    for name, model in {"base": tiny_model_path, "lora": tmp_path / "adapter", "whole": tmp_path / "merged"}.items():
        run("eval", evaluation(name, **keys, model_name_or_path=str(model)))
        losses[name] = results(tmp_path / name)["measures"]["loss"]
    assert losses["lora"] == pytest.approx(losses["whole"], rel=1e-4)
    assert losses["lora"] < losses["base"] - 0.01


def test_a_training_names_evaluations_for_its_before_and_after(evaluation, tmp_path, tiny_model_path, capsys):
    inner = evaluation("held_out", measures=["pass@k", "perplexity"])
    outer = tmp_path / "sft.yaml"
    keys = {"stage": "sft", "model_name_or_path": tiny_model_path, "dataset_name": str(tmp_path / "sums.jsonl")}
    keys |= {"output_dir": str(tmp_path / "sft"), "max_steps": 3, "learning_rate": 0.01, "dtype": "float32"}
    keys |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    outer.write_text(yaml.safe_dump(keys | {"evaluations": ["held_out.yaml"]}))
    run("check", str(outer))
    assert "held_out (pass@k, perplexity on 6 rows)" in capsys.readouterr().out
    # Against completions of other rows, or of an evaluation that is not finished, nothing is begun.
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in sums(9)[3:]))
    run("eval", evaluation("there", dataset_name=str(other)))
    evaluation("compares", measures=["win_rate"], k=[1], against=str(tmp_path / "there"))
    assert main(["run", str(outer), "--evaluations", str(tmp_path / "compares.yaml")]) == 2
    assert "is an evaluation of other rows" in capsys.readouterr().err
    run("eval", evaluation("there", max_completion_length=4), "--overwrite", "true")
    whole = (tmp_path / "there" / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "there" / "samples.jsonl").write_text("".join(whole[:-1]))
    assert main(["run", str(outer), "--evaluations", str(tmp_path / "compares.yaml")]) == 2
    assert "holds 23 of 24 completions" in capsys.readouterr().err
    assert not (tmp_path / "sft").exists()
    run("run", str(outer))
    found = results(tmp_path / "sft")
    before, after = (found[side]["evaluations"]["held_out"] for side in ("before", "after"))
    assert after["loss"] < before["loss"]
    shown = capsys.readouterr().out
    assert f"held_out after: perplexity:    {after['perplexity']:.4g}" in shown
    # What the trained model says of itself, measured by itself, is the same.
    run("eval", inner, "--model_name_or_path", str(tmp_path / "sft"))
    alone = results(tmp_path / "held_out")["measures"]
    assert alone["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert alone["pass@2"] == after["pass@2"]
    kept = tmp_path / "sft" / "evaluations" / "held_out" / "after" / "samples.jsonl"
    assert kept.read_text() == (tmp_path / "held_out" / "samples.jsonl").read_text()
    # With which it can be compared.
    run("eval", evaluation("compares", measures=["win_rate"], k=[1], against=str(kept.parents[1] / "before")))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learning_rate": 0.1}, "`learning_rate`: the stage `evaluate` trains nothing"),
        ({"eval_samples": 3}, "`eval_samples`: the stage `evaluate` trains nothing"),
        ({"k": [8]}, "`k`: [8] with `n` 4"),
        ({"temperature": 0.0}, "greedy completions of one prompt are all the same"),
        ({"measures": ["pass@1"]}, "allowed: pass@k, avg@k, maj@k, perplexity, win_rate"),
        ({"measures": ["win_rate"]}, "`against`"),
        ({"reward_funcs": None}, "name at least one reward"),
        ({"dataset_layout": "documents"}, "documents hold no prompts to answer"),
        ({"dataset_test_split": "validation"}, "has no split `validation`"),
        ({"measures": ["perplexity"], "column_mapping": {"prompt": "prompt", "text": "completion"}}, "perplexity"),
        ({"stop": ["x", ""]}, "`stop` holds an empty text"),
        ({"use_peft": True}, "`use_peft`: the stage `evaluate` trains nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(evaluation, tmp_path, capsys, changes, said):
    assert main(["eval", evaluation(**changes)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "evaluate" / "results.json").exists()


@pytest.mark.parametrize("changes", [{"model_init_kwargs": {"attention_bias": True}}, {"load_in_8bit": True}])
def test_what_vllm_would_leave_out_is_refused(evaluation, changes):
    path = Path(evaluation(vllm="colocate", use_cpu=None, **changes))
    # Where it is told for other processes, vLLM need not be here.
    recipe = read_recipe(path, profile=Profile("", None, "NO", 1))
    with pytest.raises(UserError, match=f"`{next(iter(changes))}`: vLLM .*drop the line, or `vllm`"):
        recipe.stage.check(recipe)
