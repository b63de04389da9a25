"""What each stage trains of rows in each layout: two steps really run, and what the trainer's loss was given, decoded.

    python -m tests.data.layout_table            # writes the table into docs/layouts.md

The rows are given as a file has them. ⟦…⟧ stands around tokens with a loss, ⏎ for a line break; of rollouts, which are
drawn, only the prompt shows. A stage that does not read such rows says what its `check` says.
"""

import argparse
import csv
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from transformers import AutoTokenizer

from hpt_trl.errors import UserError
from hpt_trl.runs.building import build_trainer
from hpt_trl.runs.preparation import prepare
from tests.helpers.images import save_tiny_vlm
from tests.helpers.pretraining import MODEL
from tests.helpers.stage_runs import KEYS
from tests.helpers.templates import WITH_TOOLS
from tests.helpers.tiny import save_tiny_model

HI, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
AND, MORE = {"role": "user", "content": "And?"}, {"role": "assistant", "content": "More."}
CONVERSATION = [HI, SAID, AND, MORE]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
    {"from": "human", "value": "And?"},
    {"from": "gpt", "value": "More."},
]
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"city": "Rome"}}}
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:"

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
ROWS: dict[str, dict[str, Any]] = {
    "prompt and completion": {"prompt": "Hi", "completion": "Hello."},
    "prompt alone": {"prompt": "Hi", "answer": "4"},
    "messages": {"messages": CONVERSATION},
    "messages, as JSON text": {"messages": json.dumps(CONVERSATION)},
    "sharegpt": {"conversations": SHAREGPT},
    "capybara": {"conversation": [{"input": "Hi", "output": "Hello."}, {"input": "And?", "output": "More."}]},
    "lima": {"conversations": ["Hi", "Hello.", "And?", "More."]},
    "ultrachat": {"prompt": "Hi", "messages": CONVERSATION},
    "alpaca": {"instruction": "Add.", "input": "1 and 2", "output": "It is 3."},
    "alpaca, with earlier turns and a system message": {
        "instruction": "And?",
        "output": "More.",
        "history": [["Hi", "Hello."]],
        "system": "Be brief.",
    },
    "dolly": {"instruction": "When?", "context": "It was in May.", "response": "In May."},
    "question-answer": {"question": "1 + 2?", "solution": "It is 3.", "answer": "3"},
    "a .csv file": {"Question": "1 + 2?", "Response": "003 is 3."},
    "prompt, chosen, rejected": {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."},
    "whole-conversations": {"prompt": "Hi", "chosen": CONVERSATION, "rejected": [*CONVERSATION[:3], SAID]},
    "hh-rlhf": {"chosen": f"{HH} More.", "rejected": f"{HH} No."},
    "orca": {"system": "Be brief.", "question": "Hi", "chosen": "Hello.", "rejected": "No."},
    "llama-factory": {
        "conversations": SHAREGPT[:2],
        "chosen": {"from": "gpt", "value": "Hello."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "KTO": {"prompt": "Hi", "completion": "Hello.", "label": True},
    "KTO, label false": {"prompt": "Hi", "completion": "Hello.", "label": False},
    "tools": {
        "messages": [
            HI,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "9"},
            MORE,
        ],
        "tools": [{"type": "function", "function": {"name": "clock"}}],
    },
    "pictures": {"messages": [{"role": "user", "content": "<image>Hi"}, SAID], "images": ["dot.png"]},
    "text": {"text": "Once it rained."},
}
_RL = {"num_generations": 2, "max_completion_length": 8, "reward_funcs": ["tests.helpers.stage_runs.remainder"]}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {},
    "reward": {},
    "grpo": _RL,
    # No rollout is ever right, so that the demonstrations are trained.
    "hpt": _RL | {"reward_funcs": ["tests.data.layout_table.answered"]},
    "ppo": _RL,
    "rho1": {"selection": "full"},
    "pretrain": {"model_config": MODEL, "model_name_or_path": None, "tokenizer_vocab_size": 265, "max_length": 64},
}


def answered(completions: list[Any], **_: Any) -> list[float]:
    """A reward that the demonstrations get, and no rollout of random weights."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(any(word in text for word in ("Hello.", "More.", "is 3.", "In May."))) for text in texts]


def cell(stage: str, layout: str, model: str, folder: Path) -> list[str]:
    """What a stage trains of a row: the distinct texts that its loss was given in two steps.

    Raises:
        UserError: the stage does not read such rows.
    """
    folder.mkdir(parents=True)
    data = _written(layout, folder)
    values = KEYS | {"stage": stage, "dataset_name": str(data), "model_name_or_path": model, "eval_samples": 0}
    values |= {"max_steps": 2, "eval_strategy": "no", "output_dir": str(folder / "run")} | STAGES[stage]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    prepared = prepare(str(path), [])
    trainer: Any = build_trainer(prepared, [])
    given: list[dict[str, Any]] = []
    stock = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        given.append(dict(inputs))
        return stock(model, inputs, *arguments, **named)

    trainer.compute_loss = compute_loss
    trainer.train()
    assert trainer.state.global_step == 2
    tokenizer = prepared.encoder.tokenizer
    texts = [text for inputs in given for text in _texts(inputs, tokenizer)]
    return list(dict.fromkeys(texts))


def _written(layout: str, folder: Path) -> Path:
    """A file of eight such rows, and the picture that they name."""
    row = ROWS[layout]
    Image.new("RGB", (32, 32)).save(folder / "dot.png")
    data = folder / ("rows.csv" if "csv" in layout else "rows.jsonl")
    if data.suffix == ".csv":
        with data.open("w", newline="") as file:
            csv.writer(file).writerows([[*row], *[[*row.values()]] * 8])
    else:
        data.write_text((json.dumps(row) + "\n") * 8)
    return data


def _texts(inputs: dict[str, Any], tokenizer: Any) -> list[str]:
    if "completion_ids" in inputs:
        return _rollouts(inputs, tokenizer)
    ids, present = inputs["input_ids"], inputs.get("attention_mask")
    present = torch.ones_like(ids) if present is None else present
    # A reward model scores the whole text.
    trained = inputs["labels"] != -100 if "labels" in inputs else inputs.get("completion_mask", present).bool()
    return [
        _marked(row[there.bool()], mask[there.bool()], tokenizer)
        for row, mask, there in zip(ids, trained, present, strict=True)
    ]


def _rollouts(inputs: dict[str, Any], tokenizer: Any) -> list[str]:
    """The prompts of rollouts, and of `hpt` the demonstrations behind theirs."""
    hybrid, found = inputs.get("hybrid"), []
    if hybrid is None or hybrid.has_rollouts:
        for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True):
            prompt = ids[mask.bool()]
            found.append(_marked(prompt, torch.zeros_like(prompt), tokenizer) + "⟦a rollout⟧")
    count = 0 if hybrid is None else len(hybrid.demonstration_mask)
    for place in range(count):
        forward = hybrid.forward
        row = forward.arguments["attention_mask"][place - count].bool()
        ids, length = forward.arguments["input_ids"][place - count][row], int(forward.lengths[place - count])
        trained = torch.zeros_like(ids)
        trained[len(ids) - length :] = hybrid.demonstration_mask[place, :length].to(trained)
        found.append(_marked(ids, trained, tokenizer))
    return found


def _marked(ids: torch.Tensor, trained: torch.Tensor, tokenizer: Any) -> str:
    """The ids decoded, each run of those with a loss in brackets."""
    runs: list[tuple[bool, list[int]]] = []
    for token, has_loss in zip(ids.tolist(), trained.bool().tolist(), strict=True):
        if not runs or runs[-1][0] != has_loss:
            runs.append((has_loss, []))
        runs[-1][1].append(token)
    texts = [(has_loss, tokenizer.decode(run)) for has_loss, run in runs]
    shown = "".join(f"⟦{text}⟧" if has_loss else text for has_loss, text in texts).replace("\n", "⏎")
    return re.sub("(<image>)+", "<image>", shown)


def said(error: UserError, folder: Path) -> str:
    """The message of a refusal, without the folders of this run."""
    lines = str(error).replace(f"{folder}/", "").splitlines()
    # Of rows without a form, why.
    return "refused: " + (lines[-1] if "has no column" in lines[0] else " ".join(lines))


def table(folder: Path) -> str:
    """The whole table, as docs/layouts.md has it."""
    plain, parts = save_tiny_model(folder / "model"), []
    models = {"pictures": save_tiny_vlm(str(folder / "vlm")), "tools": save_tiny_model(folder / "tools")}
    tokenizer = AutoTokenizer.from_pretrained(models["tools"])
    tokenizer.chat_template = WITH_TOOLS
    tokenizer.save_pretrained(models["tools"])
    for number, (name, row) in enumerate(ROWS.items()):
        lines = []
        for stage in STAGES:
            own = folder / f"{number}-{stage}"
            try:
                shown = cell(stage, name, models.get(name, plain), own)
            except UserError as error:
                shown = [said(error, own)]
            lines += [f"{stage if place == 0 else '':<10}{text}" for place, text in enumerate(shown)]
        parts.append(f"## {name}\n\n```json\n{json.dumps(row)}\n```\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def page(text: str) -> str:
    """docs/layouts.md with this table below its introduction."""
    return PAGE.read_text().partition("\n## ")[0] + "\n" + text


def main() -> None:
    argparse.ArgumentParser(prog="python -m tests.data.layout_table", description=__doc__).parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(table(Path(folder))))


if __name__ == "__main__":
    main()
