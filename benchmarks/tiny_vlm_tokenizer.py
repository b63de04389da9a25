"""Makes the tokenizer of the built-in model `tiny-vlm`: `python -m benchmarks.tiny_vlm_tokenizer`.

A byte-level BPE, so that any text encodes, of 1,024 tokens, learnt from what the made pages say and are asked, and what
their experts answer. Every digit is a token, and so is every tag of VRAG's actions.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import hpt_trl.models.tiny_vlm
from hpt_trl.data.pages.source import pages
from hpt_trl.data.pages.words import COLOURS
from hpt_trl.files import lines_of

SIZE = 1024
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
# Not special: a decoded completion keeps them.
TAGS = [f"<{end}{name}>" for name in ("think", "search", "bbox", "answer", "tool_call") for end in ("", "/")]
INSTRUCTIONS = (
    "\n".join(["system", "user", "assistant", "tool", *COLOURS]),
    "Answer the question. Think inside <think> and </think> first, every time you get new information. If you lack "
    "some knowledge, call a search engine by <search> query </search>; it returns the image of a page. To look closer "
    "at a part of the last page, write <bbox>[x1, y1, x2, y2]</bbox>. When you know the answer, write it inside "
    "<answer> and </answer>. Your previous action is invalid. Please try again. There is no other page. Turns left. "
    "Older pages were folded away. Exactly one action in each turn. Question: Tools:",
    'Call one so: {"name": "search", "arguments": {"query": ""}} {"name": "crop", "arguments": {"x1": 0, "y1": 0}} '
    '{"name": "answer", "arguments": {"text": ""}} {"type": "function", "function": {"description": "", "parameters": '
    '{"type": "object", "properties": {}, "required": []}}} "string" "integer" "number" "array" "items" "return"',
)


def train(lines: list[str]) -> Tokenizer:
    """Return a tokenizer learnt from lines of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def texts(folder: str) -> list[str]:
    """Return what is said on and of 2,000 made pages, without the tags."""
    train_rows, _ = pages({"size": 2000, "test_size": 0, "text_layer": "full", "folder": folder, "misses": 0.2}, seed=0)
    said = [message["content"] for row in train_rows for message in (*row["prompt"], *row["completion"])]
    said += [json.loads(line)["text"] for line in lines_of(Path(folder) / "pages.jsonl")]
    for tag in TAGS:
        said = [line.replace(tag, "\n") for line in said]
    return [*said, *INSTRUCTIONS * 500]


def main() -> None:
    """Write the file of the package."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train(texts(f"{folder}/pages"))
    file = Path(hpt_trl.models.tiny_vlm.__file__).parent / "tokenizer.json"
    tokenizer.save(str(file))
    print(f"{tokenizer.get_vocab_size()} tokens in {file}")


if __name__ == "__main__":
    main()
