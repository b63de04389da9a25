"""The program in a completion, as models write it."""

import ast
import time

import pytest

from hpt_trl.rewards.code.extraction import MAX_LENGTH, extract_code, prompt_code

PROMPT = '''from typing import List

LIMIT = 3


def helper(x):
    """A helper."""
    return x + LIMIT


def twice(numbers: List[int]) -> List[int]:
    """Double them.

    >>> twice([1])
    [2]
    """
'''
BODY = "    return [2 * (number + helper(0) - LIMIT) for number in numbers]\n"
WHOLE = "def twice(numbers):\n    return [number * 2 for number in numbers]\n"
FENCED = f"```python\n{WHOLE}```"


def check(code: str, *, entry_point: str = "twice") -> None:
    """That a program does what is asked; it stands in this file."""
    names: dict = {}
    exec(compile(code, "<extracted>", "exec"), names)
    assert names[entry_point]([1, 2]) == [2, 4]


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        "\n\n" + BODY,
        BODY + "\n\ndef twice_again(x):\n    return 1 / 0\n\nprint(twice_again(1))",
        BODY + "\n\nprint(1 / 0)",
        BODY + "\nassert twice([1]) == [3]",
        BODY + "if __name__ == '__main__':\n    1 / 0",
        BODY + "# a comment at the margin\nclass Other:\n    pass\n",
        BODY + "```\nThis doesn't need more.",
        BODY + "\nIt's done: don't change it.\n",
        BODY + "\n[DONE]\nMore",
        "    # no comment\n# at the margin\n" + BODY + "\n@decorated\ndef other(): pass",
        '    text = """\nat the margin: def x\n"""\n' + BODY + "\nx = 1 +",
        "    values = [\n1,\n]\n" + BODY,
    ],
)
def test_a_continuation_ends_with_the_function(completion):
    code = extract_code(completion, PROMPT, "twice")
    check(code)
    assert "twice_again" not in code and "1 / 0" not in code and "[3]" not in code


@pytest.mark.parametrize(
    "completion",
    [
        FENCED,
        f"Here it is:\n\n{FENCED}\n\nIt isn't hard. For example:\n\n```\ntwice([1]) # [2]\n```\n",
        f"First try:\n```python\ndef twice(numbers):\n    return 1\n```\nBetter:\n{FENCED}",
        f"```python\ndef other():\n    pass\n```\n{FENCED}\nRun it:\n```bash\npython x.py\n```",
        f"{FENCED}\nUse it so:\n```python\nprint(twice([1]))\n```",
        f"```\n{WHOLE}```",
        f"```py\n{WHOLE}",
        f"~~~python\n{WHOLE}~~~",
        "1. This:\n\n   ```python\n" + "".join(f"   {line}\n" for line in WHOLE.splitlines()) + "   ```\n",
        f"```python\n{WHOLE}\nprint(twice([1]))\nassert twice([1]) == [3]\nif __name__ == '__main__':\n    1 / 0\n```",
        f"<think>\n```python\ndef twice(numbers):\n    return 0\n```\nNo.</think>\n{FENCED}",
        WHOLE,
        f"from functools import reduce\n\n{WHOLE}\n\nThis function doubles them.\n",
        f"From the task it follows that we double:\n\n{WHOLE}",
        f"{WHOLE}\nprint(twice([1]))\nassert twice([1]) == [3]\n",
        f"```python\n{BODY}```",
        "```python\ntwice = lambda numbers: [2 * number for number in numbers]\n```",
        "```python\nclass twice(list):\n    def __init__(self, n):\n        super().__init__(2 * x for x in n)\n```",
        f"```python\n{WHOLE.rstrip()}\n\ndef unfinished(",
    ],
)
def test_an_answer_that_holds_the_function(completion):
    check(extract_code(completion, PROMPT, "twice"))
    messages = f"Complete this function, and don't explain it:\n\n```python\n{PROMPT}```\nAnswer with code alone."
    check(extract_code(completion, messages, "twice"))


@pytest.mark.parametrize(
    "completion",
    [
        # What sets the function up is no example of its use.
        "```python\ntable = []\n\ndef fill():\n    print('filling')\n    table.extend(range(9))\n\nfill()\n\n"
        "def twice(numbers):\n    return [2 * table[number] for number in numbers]\n```",
        "```python\ntable = []\n\ndef twice(numbers):\n    return [2 * table[number] for number in numbers]\n\n"
        "def fill():\n    table.extend(range(9))\n\nfill()\nprint(twice([1]) + 1)\n```",
        # What reads and prints by itself, or by others, is one.
        f"```python\n{WHOLE}\ndef main():\n    show(twice([int(input())]) + 1)\n\ndef run():\n    main()\n\nrun()\n```",
        f"```python\n{WHOLE}\nprint(twice([1]) + 1)\n\ndef other():\n    pass\n\ntwice(1)\n```",
        # Ends of lines that Python knows none of.
        f"```python\nSEPARATORS = '\u2028\x0c\x1c\x85'\n{WHOLE}\nprint(twice([1]) + 1)\nLAST = 1\n```",
        f"```python\r\n{WHOLE.replace(chr(10), chr(13) + chr(10))}\r\nprint(twice([1]) + 1)\r\n```",
        "    mark = '\x0c\u2028'\n" + BODY + "\nprint(twice([1]) + 1)\n",
    ],
)
def test_what_sets_up_stays_and_examples_go(completion):
    check(extract_code(completion, PROMPT, "twice"))


def test_what_stands_before_the_function_in_the_prompt_belongs_to_the_answer():
    code = extract_code(f"```python\ndef twice(numbers: List[int]):\n{BODY}```", PROMPT, "twice")
    check(code)
    assert "def helper" in code and code.count("def twice") == 1


def test_code_is_found_in_prompts_of_sentences():
    assert prompt_code(PROMPT, "twice") == PROMPT
    asked = f"Write the function's body, it's easy.\n\n{PROMPT}\nOnly the code, please.\n"
    assert prompt_code(asked, "twice").strip() == PROMPT.strip()
    assert prompt_code("Write a function twice.", "twice") == ""
    check(extract_code(BODY, asked, "twice"))


def test_a_script_is_kept_as_it_is():
    script = "n = int(input())\nprint(n)\nassert n\n"
    assert extract_code(script) == script
    assert extract_code(f"So:\n```python\n{script}```\nOutput:\n```\n3\n```") == script


def test_a_program_without_prompt_as_in_mbpp():
    for completion in (WHOLE, FENCED, f"{WHOLE}\n[DONE]\nYou are an expert", f"\n{WHOLE}assert twice([1]) == [5]"):
        check(extract_code(completion, "Write a function to double numbers.", "twice"))


HOSTILE = [
    "",
    "\x00",
    "\ud800",
    "(" * 50_000,
    "[" * 3000 + "]" * 3000,
    "-" * 100_000 + "1",
    "x = " + "1+" * 40_000 + "1",
    "def twice(n):\n" + "".join(" " * n + "if 1:\n" for n in range(1, 200)),
    "```python\n" * 5000,
    "def twice(" * 5000,
    "'''" * 20_001,
    "import x\n" * 20_000 + "def twice(",
    "def twice(n):\n    pass\n" * 3000 + ")",
    "from a import b\nbad bad\n" * 4000 + "def twice(n): pass",
    "\\\n" * 20_000,
    "é" * 50_000,
    "\t \t" * 20_000 + "x",
    "x" * (2 * MAX_LENGTH),
    "</think>" * 10_000,
    "`" * 100_000,
    "lambda: " * 20_000,
    "def twice(n):\n" + "    twice\n" * 2000 + "twice()\n" * 2000,
    "".join(f"def f{n}():\n    f{n + 1}()\n" for n in range(1500)) + "def twice(n): pass\n" + "f1()\n" * 1500,
]


@pytest.mark.parametrize("completion", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("prompt", [PROMPT, "Write twice."])
def test_no_completion_stops_the_training(completion, prompt):
    for text in (completion, f"```python\n{completion}\n```", f"    return {completion}"):
        start = time.monotonic()
        assert isinstance(extract_code(text, prompt, "twice"), str)
        assert time.monotonic() - start < 5


def test_an_answer_that_is_no_program_stays_one():
    code = extract_code("I cannot do that.", "Write a function twice.", "twice")
    with pytest.raises(SyntaxError):
        ast.parse(code)
