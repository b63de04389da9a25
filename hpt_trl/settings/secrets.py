"""Secrets of a recipe: taken out of it before anything is written, shown or handed on.

`hub_token` means what the variable HF_TOKEN means. It is put there, where the Hub's client and the processes that a run
starts find it, so that no config, recipe, checkpoint or command that is written later ever holds it.
"""

import json
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from hpt_trl.settings.environment import variable_fault
from hpt_trl.settings.masking import is_secret_variable, masked

TOKEN_KEY = "hub_token"
_VARIABLE = "HF_TOKEN"
# Set where the command line gave the token, which stands above that of a recipe, also in the processes of a run.
_BY_COMMAND = "HPT_TRL_TOKEN_BY_COMMAND"
# The recipe that a process of a pipeline's stage reads, and the secrets that its file does not hold.
_WITHHELD = "HPT_TRL_WITHHELD"


def take_token(words: list[str]) -> list[str]:
    """Take `--hub_token TOKEN` out of a command line, also of a pipeline's stage; returns the other words."""
    kept: list[str] = []
    place = 0
    while place < len(words):
        key, equals, value = words[place].partition("=")
        if not key.startswith("--") or key.replace("-", "_").rpartition(".")[2].lstrip("_") != TOKEN_KEY:
            kept.append(words[place])
        elif equals:
            _keep(value, by_command=True)
        elif place + 1 < len(words) and not words[place + 1].startswith("--"):
            place += 1
            _keep(words[place], by_command=True)
        else:
            # Without a value there is nothing to hide; whoever reads the keys says what is missing.
            kept.append(words[place])
        place += 1
    return kept


def take_token_of(values: MutableMapping[str, Any], texts: MutableMapping[str, str]) -> bool:
    """Take the token out of a recipe's keys.

    Args:
        values: key -> value as YAML reads it. texts: key -> the value as it is written.

    Returns:
        False where what stands there is no text; it is taken out all the same.
    """
    value = values.pop(TOKEN_KEY, None)
    texts.pop(TOKEN_KEY, None)
    if isinstance(value, str) and not os.environ.get(_BY_COMMAND):
        _keep(value)
    return value is None or isinstance(value, str)


def take_secret_variables(values: MutableMapping[str, Any]) -> None:
    """Set the variables of a recipe's `env` block that hold a secret, and take them out of the block.

    What cannot be set stays there, for who reads the block to tell.
    """
    variables = values.get("env")
    if not isinstance(variables, dict):
        return
    secret = {
        name: value
        for name, value in variables.items()
        if is_secret_variable(str(name)) and not variable_fault(name, value)
    }
    os.environ.update({str(name): str(value) for name, value in secret.items()})
    values["env"] = {name: value for name, value in variables.items() if name not in secret}
    if not values["env"]:
        del values["env"]


def withheld(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a recipe's values a file may hold, with a mask for each secret; and the values of keys that have some.

    A variable of the block `env` that has one is left out of it.
    """
    variables = values.get("env")
    variables = variables if isinstance(variables, dict) else {}
    kept = {key: value for key, value in values.items() if key != "env" and masked(value) != value}
    hidden_variables = {name: value for name, value in variables.items() if masked(value) != value}
    written = dict(values) | {key: masked(value) for key, value in kept.items()}
    if hidden_variables:
        kept["env"] = hidden_variables
        written["env"] = {name: value for name, value in variables.items() if name not in hidden_variables}
    return written, kept


def handed_on(recipe: Path, kept: Mapping[str, Any]) -> dict[str, str]:
    """The variable in which processes that read a recipe find what `withheld` kept from its file; none for nothing."""
    return {_WITHHELD: json.dumps([str(recipe.resolve()), kept], default=str)} if kept else {}


def put_back(recipe: Path, values: dict[str, Any], texts: dict[str, str]) -> None:
    """Put what was withheld from a recipe's file into what was read of it, where this process was handed it."""
    if not (given := os.environ.get(_WITHHELD)):
        return
    path, kept = json.loads(given)
    if path != str(recipe.resolve()):
        return
    variables = kept.pop("env", {})
    if variables:
        values["env"] = {**(values.get("env") or {}), **variables}
    values |= kept
    texts |= {key: value for key, value in kept.items() if isinstance(value, str)}


def hidden(text: str) -> str:
    """The text without the Hub's token, which an error of a library may quote."""
    from huggingface_hub import get_token

    for token in {os.environ.get(_VARIABLE, "").strip(), (get_token() or "").strip()} - {""}:
        text = text.replace(token, "<hidden>")
    return text


def _keep(token: str, *, by_command: bool = False) -> None:
    if token and token != "null":
        os.environ[_VARIABLE] = token
        os.environ[_BY_COMMAND] = "1" if by_command else ""
