"""The Alpaca prompt, with and without an input."""

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
    """Returns the text that stands before a response; `given` is the instruction's input, if it has one."""
    given = (given or "").strip()
    template = _WITH_INPUT if given else _WITHOUT_INPUT
    return template.format(instruction=instruction.strip(), input=given)


def response(output: str) -> str:
    """Returns the text that is learnt.

    A line break at its front would melt into one token with the prompt's last one, at its end it would part the
    solution from its end-of-sequence token.
    """
    return output.strip()
