"""Texts on which a YAML library fails, hangs or grows: each is refused with its line, in the file and on the words."""

import time

import pytest

from hpt_trl.errors import UserError
from hpt_trl.settings.file import parse_yaml_text, read_recipe_file

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FAULTY = [
    ("stage: sft\nseed: 1\x00\n", 2, "the character '\\x00' is none of a text"),
    ("stage: sft\n\nseed: \x1b[0m\n", 3, "the character '\\x1b' is none of a text"),
    ("stage: sft\nseed: &a [*a]\n", 2, "*a stands inside of &a, which it repeats"),
    ("stage: sft\nenv: &a {b: {c: *a}}\n", 2, "*a stands inside of &a"),
    ("stage: sft\nenv: &a\n  <<: *a\n", 3, "*a stands inside of &a"),
    ("stage: sft\nseed: " + "[" * 3000 + "\n", 2, "nested deeper than 50 levels"),
    ("stage: sft\nseed: " + "[" * 3000 + "]" * 3000, 2, "nested deeper than 50 levels"),
    ("stage: sft\nseed: " + "{a: " * 3000, 2, "nested deeper than 50 levels"),
    ("stage: sft\nseed:\n" + "".join(" " * n + "a:\n" for n in range(1, 300)), 52, "nested deeper than 50"),
    ("stage: sft\nseed: " + "- " * 3000, 2, "sequence entries are not allowed here"),
    (LAUGHS, 6, "it holds more than 100,000 values"),
    (LAUGHS.replace("[", "[{<<: ").replace(",", "}, {<<: ").replace("]", "}]"), 5, "more than 100,000 values"),
    ('stage: sft\nrun_name: "a\\ud800"\n', 2, "a value holds half a character"),
    ("stage: sft\nseed = 5\n", 2, "could not find expected ':'; write `key: value`, with a space behind the colon"),
    ("stage: sft\nseed:5\nrun_name: x\n", 2, "with a space behind the colon"),
    ("stage: sft\nrun_name: 'a\nseed: 5\n", 2, "the quote that begins there is not closed"),
    ("stage: sft\nreward_funcs: [a\n", 2, "the bracket that begins there is not closed"),
    ("stage: sft\n\tseed: 5\n", 2, "indent with spaces"),
    ("stage: sft\nrun_name: @x\n", 2, "put the value into quotes"),
    ("stage: sft\nrun_name: a: b\n", 2, "put a value that holds `: ` into quotes"),
    ("stage: sft\n---\nstage: dpo\n", 2, "found another document; a recipe is one document"),
    ("stage: sft\nseed: " + "9" * 5000 + "\n", 2, "a number of 5,000 digits is none"),
    ("stage: sft\nseed: *missing\n", 2, "found undefined alias"),
    *(
        (f"stage: sft\nseed: {tagged}\n", 2, "a value has the type ")
        for tagged in ("!!bool maybe", "!!timestamp x", '!!float ""', "!!binary x", "!!python/name:os.system", "!own x")
    ),
]


def test_a_comment_ends_where_its_line_does(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text('a: 1\n  # one\u2028b: 2\x85c: 3\nd: "x\u2028y"\n', encoding="utf-8")
    file = read_recipe_file(path)
    assert (list(file.values), file.lines) == (["a", "d"], {"a": 1, "d": 3})


@pytest.mark.parametrize(("text", "line", "said"), FAULTY, ids=range(len(FAULTY)))
def test_what_cannot_be_composed_is_named_with_its_line(tmp_path, text, line, said):
    path, started = tmp_path / "recipe.yaml", time.monotonic()
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_recipe_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: this is not YAML: ") and said in message
    assert len(message) < len(str(path)) + 200 and time.monotonic() - started < 5


@pytest.mark.parametrize(
    "word", ["{a: \x00}", "[\ud800]", "&a [*a]", "[" * 3000, "{a: " * 3000, "!!bool x", "[1", "9" * 5000]
)
def test_on_the_command_line_as_well(word):
    with pytest.raises(ValueError) as caught:
        parse_yaml_text(word)
    assert len(str(caught.value)) < 250


def test_anchors_are_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("env: &shared {A: 1}\nvllm: {<<: *shared, B: !!str 2}\nrewards: [*shared, *shared]\n")
    values = read_recipe_file(path).values
    assert values["vllm"] == {"A": 1, "B": "2"} and values["rewards"] == [{"A": 1}, {"A": 1}]
