"""Whether two tokenizers are one: the same text must become the same ids, or token losses of two models do not compare.

An equal size of the vocabulary says nothing. What is compared: the vocabulary itself, the merges, what the text goes
through before them, the special tokens, and the ids of texts that differences show in. What only pads or renders chats
may differ.
"""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

# Texts that tokenizers disagree about.
PROBES = (
    "The quick brown fox, it's 1 of 2: DON'T panic!",
    " leading space,  two   and three spaces, trailing ",
    "line\nline\n\n\tindented\r\n    four\n",
    "0 12 345 6789 1234567890 3.14159 1,000,000 2^10 -7",
    "def f(x: int) -> list[str]:\n    return [f'{x!r}'] * 2  # 100%\n",
    "$\\frac{a}{b} \\leq \\sqrt{2}$ <<48/2=24>> #### 24",
    "naïve café e\u0301 \ufb01ne \u2126 \u00bd Straße İstanbul",
    "日本語のテキスト 中文 한국어 Привет العربية हिन्दी",
    "🙂🙃 👩‍👩‍👧 \u200b\u00a0\ufeff “quotes” \u2013 dash…",
    "<s></s><|endoftext|><|im_start|>user<unk>[INST]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa zxqjkvwb ANTIDISESTABLISHMENTARIANISM",
)

_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized")


def differences(ours: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase) -> list[str]:
    """Say what differs between two tokenizers, one sentence each; nothing if a text has the same ids in both."""
    here, there = _traits(ours), _traits(reference)
    said = _vocabulary(here.pop("vocabulary"), there.pop("vocabulary"))
    probes = here.pop("probes"), there.pop("probes")
    # A Python tokenizer has no such parts to compare; the probes must do.
    for name in [name for name in here if name in there and here[name] != there[name]]:
        said.append(f"{name}: {_short(here[name])} here, {_short(there[name])} there")
    for text, ids, others in zip(PROBES, *probes, strict=True):
        if ids != others:
            said.append(f"the text {_short(text)} is {_around(ids, others)} here and {_around(others, ids)} there")
            break
    return said


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that is equal for tokenizers of one kind (fast, or in Python) without `differences`."""
    return hashlib.blake2b(json.dumps(_traits(tokenizer), sort_keys=True).encode(), digest_size=16).hexdigest()


def _traits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    traits: dict[str, Any] = {
        "vocabulary": tokenizer.get_vocab(),
        "beginning-of-sequence token": tokenizer.bos_token_id,
        "end-of-sequence token": tokenizer.eos_token_id,
        "tokens added around a text": _added_around(tokenizer),
        "probes": [tokenizer(text=text)["input_ids"] for text in PROBES],
    }
    if tokenizer.is_fast:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        traits["merges"] = parts["model"].get("merges")
        traits["kind of model"] = {key: parts["model"].get(key) for key in ("type", "byte_fallback", "ignore_merges")}
        traits["normaliser"] = parts["normalizer"]
        traits["pre-tokenizer"] = _without_offsets(parts["pre_tokenizer"])
        added = {token["id"]: [token[key] for key in _ADDED] for token in parts["added_tokens"]}
        traits["added tokens"] = [[number, *added[number]] for number in sorted(added)]
    return traits


def _added_around(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids before and after a text, e.g. of the beginning-of-sequence token."""
    bare = tokenizer(text="a", add_special_tokens=False)["input_ids"]
    whole = tokenizer(text="a")["input_ids"]
    start = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
    return [whole[:start], whole[start + len(bare) :]]


def _without_offsets(part: Any) -> Any:
    """The part without what only decides where a token lies in the text."""
    if isinstance(part, dict):
        return {key: _without_offsets(value) for key, value in part.items() if key != "trim_offsets"}
    return [_without_offsets(item) for item in part] if isinstance(part, list) else part


def _vocabulary(here: dict[str, int], there: dict[str, int]) -> list[str]:
    said = []
    moved = sorted((token for token in here.keys() & there.keys() if here[token] != there[token]), key=here.__getitem__)
    if moved:
        token = moved[0]
        said.append(
            f"vocabulary: {_tokens(moved)} another id, e.g. {token!r} is {here[token]} here and {there[token]} there"
        )
    for place, ones, others in (("here", here, there), ("there", there, here)):
        lone = sorted(ones.keys() - others.keys(), key=ones.__getitem__)
        if lone:
            said.append(f"vocabulary: {_tokens(lone)} an id {place} only, e.g. {lone[0]!r} ({ones[lone[0]]})")
    return said


def _tokens(tokens: list[str]) -> str:
    return "1 token has" if len(tokens) == 1 else f"{len(tokens):,} tokens have"


def _around(ids: list[int], others: list[int]) -> str:
    """The ids from the first difference on."""
    first = next((place for place, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), len(others))
    first = min(first, len(ids))
    return f"{'… ' if first else ''}{ids[first : first + 6]}"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value):,} of them, with digest {hashlib.blake2b(repr(value).encode(), digest_size=4).hexdigest()}"
    text = "none" if value is None else repr(value)
    return text if len(text) <= 90 else text[:87] + "..."
