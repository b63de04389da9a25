"""A conversation with a model in this process: turns, their prompt, and the answer as it is drawn.

transformers' own `transformers chat` talks to a server over HTTP; here the model is loaded as an evaluation loads it,
and its prompts are those of its recipe.
"""

import argparse
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from transformers import TextStreamer, set_seed
from trl import ModelConfig, get_quantization_config

from hpt_trl.chat.found import ChatModel
from hpt_trl.data.entries import named_layout
from hpt_trl.data.rendering import Encoder
from hpt_trl.data.solution_texts import PLAIN, alpaca_prompt
from hpt_trl.errors import UserError
from hpt_trl.evaluation.generating import Decoding, encode_prompts, generation_config
from hpt_trl.models.decoding import neutral_decoding
from hpt_trl.models.loading import load_tokenizer, positions_of
from hpt_trl.recipes.packages import installed
from hpt_trl.rewards.completions import text_tokenizer
from hpt_trl.runs.evaluating import load_named
from hpt_trl.runs.quiet import quiet
from hpt_trl.terminal import printable

_HELP = "/clear begins anew, /exit ends; what does not begin with / is for the model."


@dataclass
class Wording:
    """How a text of the user becomes a prompt.

    Attributes:
        chat: messages in the tokenizer's chat template, with the turns before; else a text by itself.
        template: text around the user's, with `{prompt}` for it; None for none.
        alpaca: whether the text is put into Alpaca's.
        system: the system message; empty for none.
    """

    chat: bool
    template: str | None
    alpaca: bool
    system: str

    def prompt(self, text: str) -> str:
        """The text of the user as the recipe words prompts."""
        if self.alpaca:
            return alpaca_prompt(text)
        return text if self.template is None else self.template.replace("{prompt}", text)


def wording_of(recipe: dict[str, Any], *, has_template: bool, system: str | None) -> Wording:
    """Take from a recipe how its prompts are worded.

    Args:
        recipe: its keys; empty for none.
        has_template: whether the tokenizer has a chat template.
        system: the user's system message; None for the recipe's.

    Raises:
        UserError: a system message for a model that is given no messages.
    """
    stage = recipe.get("stage")
    layout = named_layout(recipe.get("dataset_layout"), recipe.get("datasets"))
    solutions = stage == "ref_tuning" or (stage == "mtp" and layout == "solutions")
    # As those stages have it by default: their prompt is a text.
    asked = recipe.get("conversational")
    chat = has_template and (asked if asked is not None else not solutions)
    if system and not chat:
        raise UserError("--system: the model is given texts without roles, which have no system message; drop it.")
    return Wording(
        chat,
        recipe.get("prompt_template"),
        solutions and recipe.get("solution_prompt") != PLAIN,
        (recipe.get("system_prompt") or "") if system is None else system,
    )


@dataclass
class Chat:
    """A model with the turns so far."""

    model: Any
    encoder: Encoder
    wording: Wording
    decoding: Decoding
    turns: list[dict[str, Any]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    def answer(self, text: str, image: str | None = None) -> str:
        """Answer a text, print the answer as it is drawn, and keep both as turns.

        Args:
            image: file of an image that the text is about.

        Raises:
            UserError: the conversation is longer than the model takes.
        """
        turn: dict[str, Any] = {"role": "user", "content": self.wording.prompt(text)}
        images = self.images + ([] if image is None else [_read_image(image)])
        if image is not None:
            turn["content"] = [{"type": "image"}, {"type": "text", "text": turn["content"]}]
        inputs = self._encoded([*self.turns, turn], images).to(self.model.device)
        length, limit = inputs["input_ids"].shape[1], positions_of(self.model.config)
        if limit is not None and length >= limit:
            raise UserError(f"the conversation has {length} tokens, and the model takes {limit}; /clear begins anew.")
        tokenizer = text_tokenizer(self.encoder.processing_class)
        streamer = _Printed(tokenizer)
        config = generation_config(self.model, self.encoder.processing_class, self.decoding)
        config.max_new_tokens = min(config.max_new_tokens, limit - length if limit else config.max_new_tokens)
        try:
            with torch.no_grad(), neutral_decoding(self.model):
                self.model.generate(**inputs, generation_config=config, streamer=streamer)
        finally:
            print(flush=True)
        said = "".join(streamer.parts)
        self.images = images
        self.turns += [turn, {"role": "assistant", "content": said}] if self.wording.chat else []
        return said

    def clear(self) -> None:
        """Begin anew."""
        self.turns, self.images = [], []

    def _encoded(self, turns: list[dict[str, Any]], images: list[Any]) -> Any:
        if not self.wording.chat:
            return encode_prompts(self.encoder, [{"prompt": turns[-1]["content"]}])
        system = [{"role": "system", "content": self.wording.system}] if self.wording.system else []
        row: dict[str, Any] = {"prompt": [*system, *turns]}
        return encode_prompts(self.encoder, [row | ({"images": images} if images else {})])


def open_chat(found: ChatModel, options: argparse.Namespace) -> Chat:
    """Load the model of a folder.

    Args:
        options: of the command.

    Raises:
        UserError: it cannot be loaded, has no tokenizer, or needs a package that is missing.
    """
    recipe = found.recipe
    trusted = bool(recipe.get("trust_remote_code", False))
    with quiet():
        tokenizer: Any = load_tokenizer(found.name, trust_remote_code=trusted)
        wording = wording_of(recipe, has_template=tokenizer.chat_template is not None, system=options.system)
        if options.image is not None and not wording.chat:
            raise UserError("--image: the model has no chat template, in which an image could stand; drop it.")
        device = PartialState().device
        model = load_named(found.name, device, trust_remote_code=trusted, dtype="auto", **_quantization(recipe))
    set_seed(options.seed)
    encoder = Encoder(tokenizer, recipe.get("chat_template_kwargs"), reads_rows=False)
    return Chat(model, encoder, wording, Decoding(options.max_new_tokens, temperature=options.temperature))


def talk(chat: Chat, image: str | None = None) -> None:
    """Ask for texts and answer each, until the user ends it.

    Args:
        image: file of an image that the first text is about.
    """
    asks = sys.stdin.isatty()
    if asks:
        # Line editing and the former texts at the arrow keys; the console of Windows has its own.
        with suppress(ImportError):
            import readline  # noqa: F401

        print(_HELP if chat.wording.chat else f"No chat: each text is continued by itself. {_HELP}", file=sys.stderr)
    while True:
        try:
            text = input("> " if asks else "").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/clear":
            chat.clear()
            print("Begun anew.", file=sys.stderr)
        elif text.startswith("/"):
            print(f"There is no {text.split()[0]}: {_HELP}", file=sys.stderr)
        elif text:
            try:
                chat.answer(text, image)
                image = None
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                if not asks:
                    return
                print("Stopped; this answer is left out of what follows.", file=sys.stderr)


def _quantization(recipe: dict[str, Any]) -> dict[str, Any]:
    """The weights of the base as the run had them, in 4 or 8 bits."""
    names = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
    given = {name: recipe[name] for name in names if name in recipe}
    settings = get_quantization_config(ModelConfig(**given))
    if settings is None:
        return {}
    if installed("bitsandbytes") is None:
        raise UserError("the run had its base model in fewer bits, which needs pip install 'hpt-trl[quantization]'.")
    return {"quantization_config": settings}


def _read_image(file: str) -> Any:
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGB")


class _Printed(TextStreamer):
    """Prints the answer word by word, without what could tell the terminal to do something, and keeps it."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.parts: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)
        print(printable(text), end="", flush=True)
