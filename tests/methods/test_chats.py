"""Conversations through the front door: what is refused, what `check` shows, and the ids that are trained."""

import json

import pytest
import torch
import trl.chat_template_utils as templates
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import SFTConfig, SFTTrainer

from hpt_trl.cli import main
from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoded, Encoder
from hpt_trl.methods.sft.rows import training_splits
from hpt_trl.methods.sft.turns import TurnArguments
from hpt_trl.planning.check import check
from hpt_trl.planning.showing import marked
from hpt_trl.runs import runner
from hpt_trl.runs.preparation import prepare
from tests.helpers.templates import ENDLESS, FORGETFUL, SWITCHED_OFF, THOUGHTS


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture
def rows(tmp_path):
    """Writes rows and returns their file."""

    def write(rows: list[dict]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def demonstrations(answer: str = THOUGHTS) -> list[dict]:
    plain = [{"prompt": [user(f"What is {i} + 1?")], "completion": [assistant(f"{i + 1}")]} for i in range(8)]
    return [*plain, {"prompt": [user("What is 2 + 3?")], "completion": [assistant(answer)]}]


GROUPS = {"num_generations": 2, "max_completion_length": 8, "max_demonstration_length": 64}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("stage", ["sft", "rho1", "hpt", "dpo", "reward"])
def test_thoughts_that_the_template_drops_are_refused(recipe, rows, model_with, tmp_path, capsys, command, stage):
    data = demonstrations()
    changes = {"test_split_size": None}
    if stage in ("dpo", "reward"):
        data = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": [assistant("No.")]} for r in data]
    if stage == "hpt":
        changes |= GROUPS | {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "success_threshold": 3.0}
    if stage == "rho1":
        changes |= {"selection": "full", "dataset_layout": "demonstrations"}
    path = recipe(stage, dataset_name=rows(data), model_name_or_path=model_with(FORGETFUL), **changes)
    assert main([command, path]) == 2
    said = capsys.readouterr().err
    assert "line 9" in said and "leaves out" in said and "2 + 3 = 5" in said and "Traceback" not in said
    assert not (tmp_path / stage).exists()


def test_preferences_are_rendered_by_the_template_itself(recipe, rows, model_with, capsys):
    """SFT takes TRL's training variant of DeepSeek-R1's template, which keeps the thoughts; DPO does not."""
    model = model_with(templates.deepseek_r1_distill_chat_template)
    data = [
        {
            "prompt": [user(f"What is {i} + 1?")],
            "completion": [assistant(THOUGHTS)],
            "chosen": [assistant(THOUGHTS)],
            "rejected": [assistant("No.")],
        }
        for i in range(8)
    ]
    changes = {"dataset_name": rows(data), "model_name_or_path": model, "test_split_size": 2}
    assert main(["check", recipe("sft", **changes)]) == 0
    assert "2 + 3 = 5" in capsys.readouterr().out
    assert main(["check", recipe("dpo", **changes)]) == 2
    assert "does not continue the prompt" in capsys.readouterr().err


def test_check_shows_the_turns_that_have_a_loss(recipe, rows, capsys):
    data = [
        {
            "messages": [
                user(f"What is {i} + 1?"),
                assistant(f"It is {i + 1}."),
                user("And twice that?"),
                assistant(f"It is {2 * i + 2}."),
            ]
        }
        for i in range(8)
    ]
    path = recipe("sft", dataset_name=rows(data), test_split_size=None)
    check(path, [])
    said = capsys.readouterr().out
    assert "2 turns on average, every assistant turn trained" in said
    first, second = said.count("⟦It is 1.<|im_end|>"), said.count("⟦It is 2.<|im_end|>")
    assert (first, second) == (1, 1) and "⟦What" not in said
    check(path, ["--train_on_turns", "last"])
    said = capsys.readouterr().out
    assert "1 of them trained" in said and "⟦It is 1." not in said and "⟦It is 2.<|im_end|>" in said


def test_rows_of_one_turn_are_those_of_the_stock_trainer(tiny_model_path, tmp_path):
    """Prompt and completion, text and messages: the ids and labels that TRL makes of them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    texts = [{"prompt": f"What is {i} + 1?", "completion": f" It is {i + 1}."} for i in range(4)]
    for data in (texts, [{"prompt": r["prompt"], "completion": r["completion"]} for r in demonstrations("5")]):
        dataset = Dataset.from_list(data)
        stock = SFTTrainer(tiny_model_path, config, train_dataset=dataset, processing_class=tokenizer).train_dataset

        splits = Splits(dataset, None, "rows", "rows", "completion", "demonstrations")
        own, _ = training_splits(splits, Encoder(tokenizer), config, TurnArguments())
        assert own is not None
        assert own["input_ids"] == stock["input_ids"]
        assert own["labels"] == stock["labels"] and -100 in own["labels"][0]


def test_every_turn_is_trained(recipe, rows, tmp_path, tiny_model_path):
    """The held-out loss is the mean over the tokens of the trained turns, each with what stands before it."""
    held_out = [user("?"), assistant("It is 19."), user("And twice?"), assistant("It is 38.")]
    data = [{"messages": [user(f"{i}"), *held_out[1:]]} for i in range(8)]
    (tmp_path / "data").mkdir()
    for name, some in (("train", data), ("test", [{"messages": held_out}])):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    seen = {}
    for turns in ("all", "last"):
        changes = {"dataset_name": str(tmp_path / "data"), "dataset_test_split": "test", "test_split_size": None}
        runner.run(recipe("sft", max_steps=1, train_on_turns=turns, **changes), ["--overwrite", "true"])
        seen[turns] = json.loads((tmp_path / "sft" / "results.json").read_text())["before"]["held_out"]["loss"]

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path).double().eval()
    losses = []
    for place in (1, 3):
        before = tokenizer.apply_chat_template(held_out[:place], add_generation_prompt=True)["input_ids"]
        ids = tokenizer.apply_chat_template(held_out[: place + 1])["input_ids"]
        assert ids[: len(before)] == before
        logps = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], -1)
        own = range(len(before), len(ids))
        losses.append(-torch.stack([logps[at - 1, ids[at]] for at in own]).detach())
    assert seen["last"] == pytest.approx(losses[1].mean().item(), rel=1e-5)
    assert seen["all"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_the_named_chat_template_is_that_of_the_rows(recipe, rows, tmp_path, capsys):
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for message in messages %}{{ '[' + message.role + ']' + message.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    path = recipe("sft", dataset_name=rows(demonstrations("5")), test_split_size=2, max_steps=1)
    runner.run(path, ["--chat_template_path", str(template)])
    check(path, ["--chat_template_path", str(template), "--overwrite", "true"])
    assert "[assistant]" in capsys.readouterr().out
    saved = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert saved.chat_template == template.read_text()
    encoded = Encoder(saved).answered(demonstrations("5")[-1], "completion")
    assert saved.decode(encoded.ids) == "[user]What is 2 + 3?<|im_end|>[assistant]5<|im_end|>"


def test_tools_count_towards_the_length(recipe, rows, model_with, capsys):
    model = model_with(templates.qwen2_5_chat_template)
    data = demonstrations("5")
    plain = recipe("sft", dataset_name=rows(data), model_name_or_path=model, test_split_size=None, max_length=150)
    assert main(["check", plain]) == 0
    tool = {"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": {}}}
    rows([{**row, "tools": json.dumps([tool])} for row in data])
    assert main(["check", plain]) == 2
    assert "tokens, more than 149" in capsys.readouterr().err


def conversations(*answers: str) -> list[dict]:
    """Rows of two turns of the assistant."""
    return [
        {"messages": [user(f"{i}?"), assistant(answers[0]), user("And twice?"), assistant(answers[1])]}
        for i in range(8)
    ]


def test_contradicting_keys_on_what_is_trained_are_refused(recipe, rows, capsys):
    path = recipe("sft", dataset_name=rows(conversations("1", "2")), test_split_size=None, train_on_turns="last")
    for words in (["--assistant_only_loss", "true"], ["--completion_only_loss", "false"]):
        assert main(["check", path, *words]) == 2
        assert f"`{words[0][2:]}: {words[1]}` trains on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shown", "hidden"),
    [
        ([], ["⟦It is 2.<|im_end|>"], ["⟦It is 1."]),
        (["--assistant_only_loss", "true"], ["⟦It is 2.<|im_end|>"], ["⟦It is 1."]),
        (["--completion_only_loss", "false"], ["⟦<|im_start|>user"], []),
        (
            ["--completion_only_loss", "false", "--assistant_only_loss", "true"],
            ["⟦It is 1.<|im_end|>", "⟦It is 2.<|im_end|>"],
            ["⟦<|im_start|>"],
        ),
    ],
    ids=["default", "assistant", "everything", "every-turn"],
)
def test_check_shows_what_the_keys_train(recipe, rows, capsys, words, shown, hidden):
    """And a run trains it: the labels of the trainer's first row, decoded."""
    turns = [user("5?"), assistant("It is 1."), user("And twice?")]
    data = [{"prompt": turns, "completion": [assistant("It is 2.")]} for _ in range(8)]
    path = recipe("sft", dataset_name=rows(data), test_split_size=None, max_steps=1)
    check(path, words)
    said = capsys.readouterr().out
    assert all(text in said for text in shown) and not any(text in said for text in hidden)
    prepared = prepare(path, words)
    train, _ = training_splits(prepared.splits, prepared.encoder, prepared.recipe.config, prepared.recipe.arguments)
    assert train is not None
    encoded = Encoded(train[0]["input_ids"], [int(label != -100) for label in train[0]["labels"]])
    trained = marked(encoded, prepared.encoder)
    assert all(text in trained for text in shown) and not any(text in trained for text in hidden)
    runner.run(path, words)


@pytest.mark.parametrize("stage", ["sft", "hpt"])
def test_a_turn_that_the_template_does_not_end_is_ended(recipe, rows, model_with, capsys, stage):
    changes = {} if stage == "sft" else GROUPS | {"reward_funcs": ["tests.helpers.stage_runs.remainder"]}
    changes |= {"test_split_size": None, "max_steps": 1} | ({} if stage == "sft" else {"success_threshold": 3.0})
    path = recipe(stage, dataset_name=rows(demonstrations("5")), model_name_or_path=model_with(ENDLESS), **changes)
    check(path, [])
    assert "⟦1<|im_end|>⟧" in capsys.readouterr().out
    runner.run(path, [])


def test_check_shows_where_the_model_itself_stops(recipe, rows, tmp_path, model_with, capsys):
    """An end token of generation_config.json ends a demonstration, and none is added behind it."""
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|endoftext|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    folder = model_with(template)
    changes = GROUPS | {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "success_threshold": 3.0}
    changes |= {"dataset_name": rows(demonstrations("5")), "model_name_or_path": folder, "test_split_size": None}
    path = recipe("hpt", **changes)
    check(path, [])
    assert "⟦1<|endoftext|><|im_end|>⟧" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    GenerationConfig(eos_token_id=ends, pad_token_id=ends[1]).save_pretrained(folder)
    check(path, [])
    assert "⟦1<|endoftext|>⟧" in capsys.readouterr().out


def test_answers_are_measured_on_the_prompts_that_were_trained(recipe, rows, tmp_path, model_with):
    """Tools and template settings of a row are part of its prompt, in the training and in the evaluation."""
    tool = {"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": {}}}
    plain = demonstrations("5")
    variants = {
        "plain": (templates.qwen2_5_chat_template, plain),
        "tools": (templates.qwen2_5_chat_template, [row | {"tools": json.dumps([tool])} for row in plain]),
        "thinking": (SWITCHED_OFF, plain),
        "off": (SWITCHED_OFF, [row | {"chat_template_kwargs": {"enable_thinking": False}} for row in plain]),
    }
    read = {}
    for name, (template, data) in variants.items():
        if name == "off":
            data = [
                row | {"completion": [assistant("<think>\n\n</think>\n\n" + row["completion"][0]["content"])]}
                for row in data
            ]
        changes = {"dataset_name": rows(data), "model_name_or_path": model_with(template), "test_split_size": 4}
        changes |= {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "eval_samples": 4, "max_steps": 1}
        path = recipe("sft", eval_max_new_tokens=1, output_dir=str(tmp_path / name), **changes)
        runner.run(path, [])
        before = json.loads((tmp_path / name / "results.json").read_text())["before"]
        read[name] = before["tokens"]
    assert read["tools"] > read["plain"] + 4 * 20
    assert read["off"] > read["thinking"]


def test_the_recipes_end_token_is_that_of_the_rows(recipe, rows, capsys):
    path = recipe("sft", dataset_name=rows([{"prompt": f"{i} + 1", "completion": f" {i + 1}"} for i in range(8)]))
    words = ["--test_split_size", "2", "--conversational", "false"]
    assert main(["check", path, *words, "--eos_token", "<|endoftext|>"]) == 0
    assert "<|endoftext|>⟧" in capsys.readouterr().out
    assert main(["check", path, *words, "--eos_token", "</s>"]) == 2
    assert "</s> is no token of" in capsys.readouterr().err


def test_a_demonstration_beyond_the_models_context_is_refused(recipe, rows, capsys):
    changes = GROUPS | {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "success_threshold": 3.0}
    changes |= {"dataset_name": rows(demonstrations("5 " * 600)), "test_split_size": None}
    changes["max_demonstration_length"] = None
    assert main(["check", recipe("hpt", **changes)]) == 2
    said = capsys.readouterr().err
    assert "line 9: prompt and demonstration have" in said and "the model takes 512" in said
    assert main(["check", recipe("hpt", **changes | {"max_demonstration_length": 400})]) == 0


def test_demonstrations_are_tried_as_they_are_trained(recipe, rows, capsys, caplog):
    """A demonstration that is cut before its answer is graded without it."""
    data = [
        {"prompt": f"{i} + 1", "completion": f"{'So. ' * 40}\n#### {i + 1}", "answer": str(i + 1)} for i in range(8)
    ]
    changes = GROUPS | {"reward_funcs": ["math_answer"], "dataset_name": rows(data), "test_split_size": None}
    assert main(["check", recipe("hpt", **changes | {"max_demonstration_length": None})]) == 0
    assert main(["check", recipe("hpt", **changes | {"max_demonstration_length": 20})]) == 2
    assert "math_answer" in capsys.readouterr().err
    assert "8 of 8 demonstrations have more than 20 tokens" in caplog.text


def test_answers_of_several_speakers_are_refused_by_dpo(recipe, rows, capsys):
    """DPOTrainer gives a loss to all that follows the prompt; a reward model to no token."""
    several = [assistant("It is 2."), user("Sure?"), assistant("Yes.")]
    data = [{"prompt": [user(f"{i} + 1?")], "chosen": several, "rejected": [assistant("No.")]} for i in range(8)]
    changes = {"dataset_name": rows(data), "test_split_size": 2}
    assert main(["check", recipe("dpo", **changes)]) == 2
    assert "`chosen` holds a message of the user" in capsys.readouterr().err
    assert main(["check", recipe("reward", **changes)]) == 0


def test_a_turn_of_weight_0_is_context(recipe, rows, capsys):
    chat = [user("5?"), assistant("It is 1.") | {"weight": 0}, user("And twice?"), assistant("It is 2.")]
    path = recipe("sft", dataset_name=rows([{"messages": chat}] * 8), test_split_size=None)
    check(path, [])
    said = capsys.readouterr().out
    assert "⟦It is 2.<|im_end|>" in said and "⟦It is 1." not in said and "1 of them trained" in said
    rows([{"messages": chat[:2]}] * 8)
    assert main(["check", path]) == 2
    assert "no turn of the assistant is trained" in capsys.readouterr().err
    data = rows([{"prompt": chat[:1], "chosen": [chat[1], chat[3]], "rejected": [chat[3]]}] * 8)
    assert main(["check", recipe("dpo", dataset_name=data, test_split_size=None)]) == 2
    assert "line 1: `chosen` holds a message of weight 0" in capsys.readouterr().err


def test_tools_that_are_no_json_are_refused(recipe, rows, capsys):
    data = [row | {"tools": "get_weather"} for row in demonstrations("5")]
    path = recipe("sft", dataset_name=rows(data), test_split_size=None)
    assert main(["check", path]) == 2
    assert "`tools` is 'get_weather'; write a list of schemas" in capsys.readouterr().err
    rows([row | {"tools": ""} for row in data])
    assert main(["check", path]) == 0


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rollouts_alone_do_not_read_the_answers(recipe, rows, model_with, capsys, stage):
    changes = {"dataset_name": rows(demonstrations()), "model_name_or_path": model_with(FORGETFUL)}
    path = recipe(stage, **changes, test_split_size=2, reward_funcs=["boxed_format"])
    assert main(["check", path]) == 0
    said = capsys.readouterr().out
    assert "unused columns: completion\n" in said and "\ndemonstration:" not in said


def needs_a_column(completions, difficulty, **columns) -> list[float]:
    return [float(value) for value in difficulty]


def of_the_wrong_length(completions, **columns) -> list[float]:
    return [1.0]


@pytest.mark.parametrize("reward", ["needs_a_column", "of_the_wrong_length"])
def test_check_calls_the_rewards_of_every_stage(recipe, rows, capsys, reward):
    changes = {"dataset_name": rows(demonstrations("5")), "test_split_size": 2}
    assert main(["check", recipe("grpo", **changes, reward_funcs=[f"tests.methods.test_chats.{reward}"])]) == 2
    said = capsys.readouterr().err
    assert reward in said and "Traceback" not in said
