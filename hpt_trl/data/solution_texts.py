"""A problem and a solution as the texts that are trained on: prompt and completion."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

ALPACA, PLAIN = "alpaca", "plain"
FORMS = (ALPACA, PLAIN)

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def alpaca_prompt(instruction: str, given: str | None = None) -> str:
    """Returns Alpaca's text before a response; `given` is the instruction's input, if it has one."""
    given = (given or "").strip()
    template = _WITH_INPUT if given else _WITHOUT_INPUT
    return template.format(instruction=instruction.strip(), input=given)


def response(output: str) -> str:
    """Returns the text that is learnt.

    A line break at its front would melt into one token with the prompt's last one, at its end it would part the
    solution from its end-of-sequence token.
    """
    return output.strip()


def prompts_and_completions(rows: "Dataset", form: str) -> dict[str, list[str]]:
    """Returns the columns `prompt` and `completion` of solutions.

    Args:
        rows: layout `solutions`.
        form: `alpaca`, or `plain`: the instruction, after a blank line its input, and the solution as they stand.
    """
    given = rows["input"] if "input" in rows.column_names else [None] * len(rows)
    pairs = list(zip(rows["instruction"], given, strict=True))
    if form == PLAIN:
        prompts = [f"{instruction}\n\n{more}" if more else instruction for instruction, more in pairs]
        return {"prompt": prompts, "completion": list(rows["output"])}
    return {
        "prompt": [alpaca_prompt(instruction, more) for instruction, more in pairs],
        "completion": [response(output) for output in rows["output"]],
    }
