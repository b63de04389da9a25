"""What must not be shown or handed on: keys and passwords in a recipe, a config or a command."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "••••"

# Keys whose value is one; a tokenizer's `eos_token` is none, nor is the name of a variable that holds one.
_KEY = re.compile(
    r"(^|[_.-])(token|secret|secret_?key|password|passwd|api_?key|credential|authorization|cookie)s?$", re.IGNORECASE
)
_HARMLESS = re.compile(
    r"(bos|eos|pad|unk|sep|cls|mask|image|video|audio|stop|start|end|special|max|min|new|num|total|future)_tokens?$",
    re.IGNORECASE,
)
# Of variables, in which a key of any kind is a secret.
_VARIABLE = re.compile(r"(token|key|secret|password)$", re.IGNORECASE)
# What looks like one wherever it stands: tokens of the Hub, GitHub, OpenAI, AWS and Weights & Biases.
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|gh[opsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,}"
    r"|wandb_v1_[A-Za-z0-9_-]{8,})"
)
# A key of a mapping that is written into a word, and its value.
_PAIR = re.compile(r"""(["']?)([\w.-]+)\1(\s*:\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^,{}\[\]"'\s][^,{}\[\]]*)""")
_BEGUN = re.compile(r"""([\w.-]+)["']?:$""")
# Name and password of an address.
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def is_secret(key: str) -> bool:
    """Whether a key of a recipe names a secret."""
    return bool(_KEY.search(key)) and not _HARMLESS.search(key)


def is_secret_variable(name: str) -> bool:
    """Whether a variable of the environment holds a secret, by its name."""
    return is_secret(name) or bool(_VARIABLE.search(name))


def masked_text(text: str) -> str:
    """The text without what looks like a token, or a login inside of an address."""
    return _LOGIN.sub(MASK, _VALUE.sub(MASK, text))


def masked(value: Any) -> Any:
    """A recipe's value, or all of a recipe, without secrets."""
    if isinstance(value, Mapping):
        hidden = {key: is_secret(str(key)) and item not in (None, "", True, False) for key, item in value.items()}
        return {key: MASK if hidden[key] else masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return masked_text(value) if isinstance(value, str) else value


def holds_mask(value: Any) -> bool:
    """Whether a secret was left out of a value, which then stands for nothing."""
    if isinstance(value, Mapping):
        return any(map(holds_mask, value.values()))
    return any(map(holds_mask, value)) if isinstance(value, list | tuple) else isinstance(value, str) and MASK in value


def masked_command(command: str) -> str:
    """A command line without the values of secret keys; see `masked_words`."""
    try:
        words = shlex.split(command)
    except ValueError:
        # No command that a shell would take; what looks like a token is hidden all the same.
        return masked_text(command)
    shown = masked_words(words)
    return " ".join(word if word == MASK or word.endswith(f"={MASK}") else shlex.quote(word) for word in shown)


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command without the values of secret keys, as they are and in mappings.

    They are written `--hub_token hf_...`, `--hub_token=hf_...` or `--model_init_kwargs '{"token": "hf_..."}'`.
    """
    shown: list[str] = []
    hiding = False
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("--"):
            hiding = is_secret(key) and not equals
            shown.append(f"{key}={MASK if is_secret(key) else _masked_word(value)}" if equals else masked_text(word))
        else:
            shown.append(MASK if hiding else _masked_word(word))
            # A mapping without quotes is several words.
            hiding = hiding or ((begun := _BEGUN.search(word)) is not None and is_secret(begun[1]))
    return shown


def _masked_word(word: str) -> str:
    """A word of a command; where it is a mapping or a list, as YAML or half of it, without the secrets in it."""

    def hidden(pair: re.Match[str]) -> str:
        return f"{pair[1]}{pair[2]}{pair[1]}{pair[3]}{MASK}" if is_secret(pair[2]) else pair[0]

    return masked_text(_PAIR.sub(hidden, word) if word.lstrip().startswith(("{", "[")) else word)
