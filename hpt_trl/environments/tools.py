"""Functions as tools: the model calls them, and reads what they return, until it answers without a call."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import get_json_schema

from hpt_trl.environments.protocol import Messages, Observation, Turn
from hpt_trl.errors import UserError

# Characters of a result that the model reads at most.
LONGEST_RESULT = 4000


class ToolEnvironment:
    """One rollout's environment of functions.

    A function has type hints and a docstring with its `Args:`, by which the chat template names it; it is called with
    the arguments that the model writes. What it raises is told to the model.

    Args:
        functions: the tools; their names are the functions'.

    Raises:
        UserError: one has no schema, or two have the same name.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]):
        self._functions = {function.__name__: function for function in functions}
        if len(self._functions) < len(functions):
            raise UserError("two functions have the same name, by which the model calls them; rename one.")
        self.tools = [_schema(function) for function in functions]
        self.start({})

    def prompt(self, messages: Messages) -> Messages:
        return messages

    def start(self, row: dict[str, Any]) -> None:
        self._answer: str | None = None
        self._calls = self._failures = 0

    def act(self, turn: Turn) -> Observation | str:
        if turn.cut:
            return "cut"
        calls = turn.message.get("tool_calls") or []
        if not calls:
            self._answer = turn.text.strip()
            return "answer"
        results = [self._called(call) for call in calls]
        names = {name for name, _ in results}
        texts = [text if len(results) == 1 else f"{name}: {text}" for name, text in results]
        return Observation(("\n".join(texts),), role="tool", name=names.pop() if len(names) == 1 else "tools")

    def unseen(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"final_answer": self._answer, "calls": self._calls, "failures": self._failures}

    def measures(self) -> dict[str, float]:
        return {
            "tools/calls": float(self._calls),
            "tools/failures": float(self._failures),
            "tools/answered": float(self._answer is not None),
        }

    def _called(self, call: Any) -> tuple[str, str]:
        """Name of a call, and what the model reads of it."""
        self._calls += 1
        function = call.get("function", call) if isinstance(call, dict) else {}
        name, arguments = str(function.get("name")), function.get("arguments")
        try:
            if name not in self._functions:
                raise LookupError(f"there is no tool {name[:40]!r}; there are {', '.join(self._functions)}")
            given = json.loads(arguments) if isinstance(arguments, str) else arguments or {}
            inspect.signature(self._functions[name]).bind(**given)
            return name, str(self._functions[name](**given))[:LONGEST_RESULT]
        # What a function raises, on whatever a model writes, is the model's to read.
        except (Exception, SystemExit) as error:
            self._failures += 1
            return name, f"error: {error}"[:LONGEST_RESULT]


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_json_schema(function)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the function {function.__name__} cannot be a tool: {reason} Give it type hints, and a docstring with "
            "`Args:`."
        ) from error
