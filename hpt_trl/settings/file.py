"""Reads a recipe's YAML and keeps the line of every key, so that an error can name it.

PyYAML speaks YAML 1.1, where `no` and `off` are booleans and `1e-6` is text. Recipes say `unify_strategy: no` and
`learning_rate: 1e-6` and mean what they say, so scalars are read by the rules of YAML 1.2 (its core schema).
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpt_trl.errors import Collector, Place, UserError
from hpt_trl.settings.imported import MODULE_FOLDERS
from hpt_trl.settings.recipe_text import recipe_text
from hpt_trl.settings.secrets import put_back
from hpt_trl.settings.yaml_text import check_yaml, explained

# Of YAML 1.1 alone, which would end a comment in the middle of what editors show as one line.
_BREAK = re.compile("[\x85\u2028\u2029]")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
# Letters of a value that messages quote.
_QUOTED = 200
# Behind the place of a key that is nowhere.
UNSET = " (not set, its default holds)"


class RecipeLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the scalars of YAML 1.2: `true` and `false` only, no dates, no base 60, `1e-6` a float."""


# The parent's resolvers are YAML 1.1's; the merge key `<<` is the only one of them that is kept as it is.
RecipeLoader.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile(r"^<<$"))]}
for _tag, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
):
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: RecipeLoader, node: yaml.ScalarNode) -> int:
    # SafeLoader would read 010 as eight.
    text = loader.construct_scalar(node)
    try:
        return int(text)
    except ValueError as error:
        # Python reads no more than some thousand.
        raise yaml.MarkedYAMLError(
            problem=f"a number of {len(text):,} digits is none", problem_mark=node.start_mark
        ) from error


RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True)
class RecipeFile:
    """The keys of one recipe file.

    Attributes:
        path: the file.
        values: key -> value as YAML reads it.
        lines: key -> line of the key, counted from 1.
        texts: key -> the value as it is written, for keys whose value is a single scalar.
        inner: key -> what stands inside of its value, where that is a mapping or a list; items are called 1, 2, ...
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int]
    texts: dict[str, str]
    inner: "dict[str, RecipeFile]" = field(default_factory=dict)

    def line(self, key: str, *inside: str) -> int | None:
        """Returns the line of a key, or of what stands inside of it as far as it does; None where it is not set."""
        inner = self.inner.get(key)
        found = None if inner is None or not inside else inner.line(*inside)
        return self.lines.get(key) if found is None else found


def shown(path: Path) -> str:
    """Returns the path as messages name it: relative to the working directory where that is shorter."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


@dataclass
class Sources:
    """Where each value comes from: the recipe file, and the command line (key -> the words that follow it)."""

    file: RecipeFile
    overrides: dict[str, list[str]]

    @property
    def folder(self) -> Path | None:
        """The folder from which the paths of the file count first."""
        return self.file.path.parent

    @property
    def module_folders(self) -> list[str | Path]:
        """The folders in which modules that the recipe names are looked up first; see `settings.imported`."""
        variables = self.file.values.get("env")
        stored = variables.get(MODULE_FOLDERS) if isinstance(variables, dict) else None
        if isinstance(stored, str):
            return [folder for folder in stored.split(os.pathsep) if folder]
        return [] if self.folder is None else [self.folder]

    def given(self, key: str) -> str:
        """Returns a key's value as the user wrote it; empty where there is none."""
        if key in self.overrides:
            return " ".join(self.overrides[key])
        return self.file.texts.get(key, str(self.file.values.get(key, "")))

    def quoted(self, key: str) -> str:
        """Returns a key's value as messages quote it: what the user wrote, of a long text the beginning."""
        return self.given(key)[:_QUOTED]

    def value(self, key: str) -> Any:
        """Returns what stands at a key, whether it is known or not; None where there is nothing."""
        words = self.overrides.get(key)
        return self.file.values.get(key) if words is None else " ".join(words)

    def place(self, key: str, *inside: str) -> Place:
        """Returns where a key is set; with what stands inside of its value, the line of that."""
        file = shown(self.file.path)
        if key in self.overrides:
            return Place(file, key, on_command_line=True)
        line = self.file.line(key, *inside)
        return Place(file, key, line, note=UNSET if line is None else "")

    def error(self, key: str, message: str) -> UserError:
        """Returns (does not raise) the error about a key, with the place that set it in front of the message."""
        return self.place(key).error(message)

    @contextmanager
    def placing(self, *keys: str) -> Iterator[None]:
        """Inside, mistakes about these keys get the place of the key.

        Raises:
            UserError: the mistakes.
        """
        try:
            yield
        except UserError as error:
            mistakes = Collector()
            for one in error.every:
                mistakes.note(self._placed(one, keys))
            mistakes.settle()

    def _placed(self, error: UserError, keys: Collection[str]) -> UserError:
        if error.place is not None:
            return error
        if error.about:
            return self.place(*error.about).error(error.said)
        # Others begin with the key, in words.
        key, colon, message = str(error).partition(": ")
        return self.error(key, message) if colon and key in keys else error


def _note_duplicates(node: yaml.Node, path: Path, mistakes: Collector) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            _note_duplicates(value, path, mistakes)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, file = key.start_mark.line + 1, shown(path)
            if key.value in seen:
                said = f"the key is already set on line {seen[key.value]}. Keep one of the two."
                mistakes.note(Place(file, key.value, line).error(said))
            seen[key.value] = line
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _note_duplicates(item, path, mistakes)


def _structure(loader: RecipeLoader, path: Path, root: yaml.MappingNode | yaml.SequenceNode) -> RecipeFile:
    """The keys of a mapping by their texts, or the items of a list by their numbers."""
    if isinstance(root, yaml.MappingNode):
        loader.flatten_mapping(root)
        nodes = {key.value: (key, value) for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    else:
        nodes = {str(number): (item, item) for number, item in enumerate(root.value, 1)}
    return RecipeFile(
        path=path,
        values={name: loader.construct_object(value, deep=True) for name, (_, value) in nodes.items()},
        lines={name: key.start_mark.line + 1 for name, (key, _) in nodes.items()},
        texts={name: value.value for name, (_, value) in nodes.items() if isinstance(value, yaml.ScalarNode)},
        inner={
            name: _structure(loader, path, value)
            for name, (_, value) in nodes.items()
            if isinstance(value, yaml.MappingNode | yaml.SequenceNode)
        },
    )


def read_recipe_file(path: Path, mistakes: Collector | None = None) -> RecipeFile:
    """Reads one recipe file.

    Args:
        mistakes: takes those of single keys, so that others can be told with them: of a key that is set twice the last
            value is read, one that is no word is left out. By default they are raised.

    Raises:
        UserError: the file cannot be read, is not YAML, is empty, is not a mapping of names to values, or sets a key
            twice. The message names the file and, where there is one, the line.
    """
    text = recipe_text(path, shown(path))
    text = _COMMENT.sub(lambda comment: _BREAK.sub(" ", comment[0]), text)
    noted = Collector() if mistakes is None else mistakes
    try:
        check_yaml(text)
        loader = RecipeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise UserError(f"{shown(path)}: the recipe is empty. Write `key: value` lines, at least `stage: hpt`.")
        if not isinstance(root, yaml.MappingNode):
            raise UserError(
                f"{shown(path)}, line {root.start_mark.line + 1}: a recipe is a mapping of `key: value` lines, this is "
                f"a {'list' if isinstance(root, yaml.SequenceNode) else 'single value'}."
            )
        for key, _ in root.value:
            if not isinstance(key, yaml.ScalarNode):
                line, file = key.start_mark.line + 1, shown(path)
                noted.note(Place(file, "", line).error("a key is one word, not a structure."))
        _note_duplicates(root, path, noted)
        if mistakes is None:
            noted.settle()
        found = _structure(loader, path, root)
        put_back(path, found.values, found.texts)
        return found
    except yaml.MarkedYAMLError as error:
        line, said = explained(error)
        where = "" if line is None else f", line {line}"
        raise UserError(f"{shown(path)}{where}: this is not YAML: {said}.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path)}: this is not YAML: {error}.") from error


def split_overrides(words: list[str], mistakes: Collector | None = None) -> dict[str, list[str]]:
    """Splits `--key value ...`, `--key=value` and `--flag` into key -> words; of a key given twice the last counts.

    Args:
        mistakes: takes that words stand before the first key. By default it is raised.

    Raises:
        UserError: words stand there.
    """
    noted = Collector() if mistakes is None else mistakes
    overrides: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            current = overrides[key.replace("-", "_")] = [value] if equals else []
        elif current is None and word == words[0]:
            said = f"`{word[:_QUOTED]}` on the command line follows no key; overrides are written `--key value`."
            noted.note(UserError(said))
        elif current is not None:
            current.append(word)
    if mistakes is None:
        noted.settle()
    return overrides


def parse_yaml_text(text: str) -> Any:
    """Reads a value given as text on the command line by the same rules as a recipe's (`1e-6`, `{size: 200}`).

    Raises:
        ValueError: the text is not YAML.
    """
    try:
        check_yaml(text)
        return yaml.load(text, Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{text:.80} is not YAML: {error.problem}") from error
