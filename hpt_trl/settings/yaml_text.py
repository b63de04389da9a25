"""Whether a YAML text is one that can be composed: PyYAML's composer is recursive, and follows aliases without end."""

import yaml
from yaml.reader import ReaderError

# Far above what a recipe has: a pipeline's deepest value stands in five structures.
DEEPEST = 50
MOST_VALUES = 100_000
# Of what PyYAML says: which of its words, and what to do about it.
_ADVICE = (
    ("'\\t' that cannot start", "indent with spaces"),
    ("cannot start any token", "put the value into quotes"),
    ("mapping values are not allowed", "put a value that holds `: ` into quotes, and begin each key as the others do"),
    ("could not find expected ':'", "write `key: value`, with a space behind the colon"),
    ("unexpected end of stream", "the quote that begins there is not closed"),
    ("<stream end>", "the bracket that begins there is not closed"),
    ("another document", "a recipe is one document; drop the line `---` and what follows"),
)
# Those that PyYAML meets behind the place where they began.
_LATE = ("could not find expected ':'", "unexpected end of stream", "<stream end>")
_PLAIN = (None, "!", "tag:yaml.org,2002:str")


def check_yaml(text: str) -> None:
    """Walk through a text's events before anything is made of them.

    Raises:
        yaml.MarkedYAMLError: it is not YAML, holds a character that YAML has not, is nested too deep, an alias stands
            inside of what it names or makes it endlessly large, or a value has a tag of a type.
    """
    sizes: dict[str, int | None] = {}  # of what has an anchor, in values; None while it is read
    open_ones: list[tuple[str | None, int]] = []  # anchor of each structure that is being read, and values before it
    values = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # One that names nothing is told by the composer.
                size = sizes.get(event.anchor, 1)
                if size is None:
                    raise _fault(f"*{event.anchor} stands inside of &{event.anchor}, which it repeats", event)
                values += size
            elif isinstance(event, yaml.NodeEvent):
                tag = getattr(event, "tag", None)
                if tag not in _PLAIN:
                    raise _fault(f"a value has the type {tag!r:.80}, and is read by its key; leave the mark out", event)
                if isinstance(event, yaml.ScalarEvent) and any(
                    "\ud800" <= letter <= "\udfff" for letter in event.value
                ):
                    raise _fault("a value holds half a character (of a pair such as \\ud83d\\ude00)", event)
                values += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    open_ones.append((event.anchor, values))
                if event.anchor is not None:
                    sizes[event.anchor] = None if isinstance(event, yaml.CollectionStartEvent) else 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_ones.pop()
                if anchor is not None:
                    sizes[anchor] = values - before + 1
            if len(open_ones) > DEEPEST:
                raise _fault(f"structures are nested deeper than {DEEPEST} levels", event)
            if values > MOST_VALUES:
                raise _fault(f"with what its aliases repeat, it holds more than {MOST_VALUES:,} values", event)
    except ReaderError as error:
        line = text.count("\n", 0, error.position)
        mark = yaml.Mark("", error.position, line, 0, None, None)
        raise yaml.MarkedYAMLError(
            problem=f"the character {chr(error.character)!r} is none of a text", problem_mark=mark
        ) from error


def explained(error: yaml.MarkedYAMLError) -> tuple[int | None, str]:
    """Returns the line of what is wrong, counted from 1, None where it has none, and what is wrong with what to do."""
    problem = str(error.problem)
    late = error.context_mark if any(words in problem for words in _LATE) else None
    mark = late or error.problem_mark or error.context_mark
    advice = next((f"; {advice}" for words, advice in _ADVICE if words in problem), "")
    return (None if mark is None else mark.line + 1), f"{problem.removeprefix('but ')}{advice}"


def _fault(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
