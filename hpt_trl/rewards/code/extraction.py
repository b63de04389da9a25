"""The program in a completion: of a model that continues a prompt, or of one that answers in sentences and blocks.

What is parsed here comes from a model and may be anything. It is parsed, never run; texts that the parser gives up
are left as they are.
"""

import ast
import io
import re
import tokenize

from hpt_trl.rewards.code.lines import lines_of, normalised
from hpt_trl.rewards.code.reach import Reach

# Longer completions are not taken apart, nor those with a null byte, over which Python 3.12 stumbles.
MAX_LENGTH = 200_000
# Mark of the end in the few-shot prompts of MBPP.
_DONE = "[DONE]"
_FENCE = re.compile(r"^([ \t]*)(?:```|~~~)[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.M | re.S)
_PYTHON = ("", "python", "python3", "py", "py3", "python2")
_CODE_LINE = re.compile(
    r"(import|from|def|async def|class|@|#|if|try|with|for|while|[A-Za-z_]\w*(\[[^\]]*\])?\s*[:=]|[\s)\]}])"
)
_NOT_PARSED = (SyntaxError, ValueError, MemoryError, RecursionError)


def extract_code(completion: str, prompt: str = "", entry_point: str | None = None) -> str:
    """Returns the program that a completion stands for.

    - A continuation of the prompt's code, told by its first line, which is indented, ends before the first statement
      that is not part of the function; prompt and continuation are the program.
    - Of fenced blocks the last one that defines the entry point counts, else the last one in Python.
    - Text without blocks is the program, without sentences before and after it.
    - To an answer that repeats the function belongs what stands before it in the prompt: imports and functions that
      it calls. Of its top level assertions are left out, calls of the function and of `print`, and after its last
      definition calls that use the function or read input, as in examples; what sets it up is kept.

    Args:
        completion: The model's text; what stands before a last `</think>` is left out.
        prompt: The prompt as text; the code in it is found.
        entry_point: The function that is asked for. None is a script, of which everything is kept.
    """
    text = completion.rpartition("</think>")[2]
    text = (text if text.strip() else completion).partition(_DONE)[0]
    if len(text) > MAX_LENGTH or "\0" in text:
        return text
    text, prompt = normalised(text), normalised(prompt)
    if entry_point is None:
        blocks = _blocks(text)
        return blocks[-1] if blocks else text
    start = prompt_code(prompt, entry_point)
    if start and _is_indented(text):
        return start + _body(start, text)
    blocks = _blocks(text)
    defining = [block for block in blocks if _defines(block, entry_point)]
    if defining:
        return _whole(start, defining[-1], entry_point)
    if blocks and start and _is_indented(blocks[-1]):
        return start + _body(start, blocks[-1])
    if not blocks and start and not _defines(text, entry_point):
        return start + _body(start, text)
    return _whole(start, blocks[-1] if blocks else text, entry_point)


def prompt_code(prompt: str, entry_point: str) -> str:
    """The code in a prompt that begins the function, with what stands before it; empty where there is none.

    In a prompt of sentences and code it is the fenced block that defines the function, or the lines around it that
    look like code.
    """
    blocks = [block for block in _blocks(prompt) if _defines(block, entry_point)]
    if blocks:
        return blocks[-1]
    found = re.search(_definition(entry_point), prompt, re.M)
    if found is None:
        return ""
    lines = lines_of(prompt[: found.start()])
    first = len(lines)
    while first and (not lines[first - 1].strip() or _CODE_LINE.match(lines[first - 1])):
        first -= 1
    head = "".join(lines[first:])
    rest = prompt[found.start() :]
    signature, _, body = rest.partition("\n")
    return head + signature + "\n" + _body(signature + "\n", body) if body else head + rest


def _blocks(text: str) -> list[str]:
    """The fenced blocks of Python in a text; one that is not closed goes to the end."""
    # In a list a block is as far to the right as its fence; its code may be a body, which is indented by itself.
    found = [
        (language.lower(), re.sub(rf"^[ \t]{{0,{len(margin)}}}", "", code, flags=re.M))
        for margin, language, code in _FENCE.findall(text)
    ]
    python = [code for language, code in found if language in _PYTHON and code.strip()]
    named = [code for language, code in found if language in _PYTHON and language and code.strip()]
    # Blocks without a language are often output, where others have one.
    return named or python


def _definition(entry_point: str) -> str:
    name = re.escape(entry_point)
    return rf"^(?:async[ \t]+def|def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?="


def _defines(code: str, entry_point: str) -> bool:
    return re.search(_definition(entry_point), code, re.M) is not None


def _is_indented(text: str) -> bool:
    first = next((line for line in lines_of(text) if line.strip()), "")
    return first[:1] in (" ", "\t")


def _body(start: str, text: str) -> str:
    """A continuation up to the first statement that stands at the top level."""
    lines = lines_of(text)
    before = start.count("\n")
    place = _top_level(start + text, before)
    if place is None:
        # What the tokenizer cannot read is cut by the look of its lines.
        place = next(
            (n for n, line in enumerate(lines) if n and line.strip() and not re.match(r"[\s#)\]}'\"]", line)), None
        )
        return text if place is None else "".join(lines[:place])
    return "".join(lines[: max(place - before - 1, 0)])


def _top_level(source: str, before: int) -> int | None:
    """The line, counted from 1, of the first statement at the top level after so many lines; one past the end for none.

    None where the source cannot be read that far.
    """
    beginning = True
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                beginning = True
            elif token.type not in (tokenize.NL, tokenize.COMMENT):
                if beginning and token.start[1] == 0 and token.start[0] > before:
                    return token.start[0]
                beginning = False
    except (tokenize.TokenError, *_NOT_PARSED):
        return None
    return source.count("\n") + 2


def _whole(start: str, code: str, entry_point: str) -> str:
    """An answer that holds the function: with what the prompt has before it, and without examples of its use."""
    head = ""
    if start and (found := re.search(_definition(entry_point), start, re.M)):
        head = start[: found.start()]
        head = f"{head.rstrip()}\n\n" if head.strip() and _parsed(head) is not None else ""
    return head + _without_examples(_readable(code, entry_point), entry_point)


def _readable(code: str, entry_point: str) -> str:
    """The longest part of a text from a line that may begin code, down to where it stops to be Python."""
    lines = lines_of(code)
    found = re.search(_definition(entry_point), code, re.M)
    last = code[: found.start()].count("\n") if found else len(lines)
    starts = [n for n, line in enumerate(lines[: last + 1]) if line.strip() and _CODE_LINE.match(line)][:20]
    for first in starts:
        end = len(lines)
        while end > max(first, last if found else first):
            text = "".join(lines[first:end])
            wrong = _wrong_line(text)
            if wrong is None:
                return text
            # The line that the parser stumbles over, or an earlier one that is not finished.
            end = min(end - 1, first + max(wrong - 1, 0))
    return code


def _wrong_line(text: str) -> int | None:
    """The line, counted from 1, at which a text stops to be Python; None where it does not."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, MemoryError, RecursionError):
        return 1
    return None


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except _NOT_PARSED:
        return None


def _without_examples(code: str, entry_point: str) -> str:
    """Code without the statements at its top level that only try what it defines."""
    tree = _parsed(code)
    if tree is None:
        return code
    lines = lines_of(code)
    direct, trying = {"print", entry_point}, Reach(tree.body).users((entry_point, "input"))
    last = max((node.lineno for node in tree.body if _is_definition(node, entry_point)), default=0)
    for node in tree.body:
        if _is_check(node) or _calls(node, direct) or (node.lineno > last and _uses(node, trying)):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = "\n"
    left = "".join(lines)
    # Two statements may share a line.
    return left if _parsed(left) is not None else code


def _is_definition(node: ast.stmt, entry_point: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == entry_point for target in targets)


def _is_check(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return "__name__" in {name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)}
    return isinstance(node, ast.Assert)


def _calls(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement is a call of one of these names, with its value left unused."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names


def _uses(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement is a call of a name in which one of these is used."""
    call = node.value if isinstance(node, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return False
    return any(isinstance(inner, ast.Name) and inner.id in names for inner in ast.walk(call))
