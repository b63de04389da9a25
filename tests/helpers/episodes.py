"""Rollouts in an environment whose observations are written down, and what a processor makes of the whole."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin

from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.encoding import PieceEncoder
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.pieces import Piece
from hpt_trl.environments.protocol import Messages, Observation, Picture, Turn

PROMPT = [{"role": "user", "content": "Which color?"}]


class Scripted:
    """Shows its observations one after the other, and ends with `answer` behind the last; keeps what it is told."""

    tools: list[dict[str, Any]] = []

    def __init__(self, observations: Sequence[Observation | str]):
        self.observations = list(observations)
        self.turns: list[Turn] = []
        self.hidden = 0

    def prompt(self, messages: Messages) -> Messages:
        return messages

    def start(self, row: dict[str, Any]) -> None:
        self.turns, self.hidden = [], 0

    def act(self, turn: Turn) -> Observation | str:
        self.turns.append(turn)
        return self.observations[len(self.turns) - 1] if len(self.turns) <= len(self.observations) else "answer"

    def unseen(self) -> None:
        self.hidden += 1

    def facts(self) -> dict[str, Any]:
        return {"hidden": self.hidden}

    def measures(self) -> dict[str, float]:
        return {"scripted/hidden": float(self.hidden)}


def picture(width: int, height: int, shade: int = 0, name: str = "page_1") -> Picture:
    """An image whose pixels differ from those of another shade."""
    image = Image.new("RGB", (width, height), (shade * 37 % 256, 255 - shade * 53 % 256, shade * 91 % 256))
    image.putpixel((0, 0), (255, shade % 256, 0))
    return Picture(image, name)


def encoder_of(path: str, **settings: Any) -> Encoder:
    """The encoder of a folder's processor or tokenizer, which ends turns on the end-of-sequence token."""
    processing_class = AutoProcessor.from_pretrained(path)
    if not isinstance(processing_class, ProcessorMixin):
        processing_class = AutoTokenizer.from_pretrained(path)
    return with_ends(processing_class, **settings)


def with_ends(processing_class: Any, **settings: Any) -> Encoder:
    """An encoder that ends turns as trainers do."""
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    return Encoder(processing_class, reads_rows=False, end_ids=[tokenizer.eos_token_id], **settings)


def episode_of(
    encoder: Encoder,
    observations: Sequence[Observation | str] = (),
    row: dict[str, Any] | None = None,
    *,
    drawn: int = 10_000,
    positions: int | None = None,
    **limits: Any,
) -> Episode:
    """A rollout in a `Scripted` environment."""
    environments = TurnEnvironments(lambda: Scripted(observations), **{"max_turns": 100, **limits})
    return Acting(environments, encoder, drawn=drawn, positions=positions).episode(row or {"prompt": PROMPT})


def turn_ids(encoder: Encoder, text: str) -> list[int]:
    """A turn as a model would draw it."""
    return [*encoder.ids(text), encoder.end_ids[0]]


def conversation(
    prompt: Messages, images: Sequence[Any], turns: Sequence[str], observations: Sequence[Observation], plain: bool
) -> Messages:
    """The messages of a rollout, with images in their parts.

    Args:
        plain: contents are texts, for a tokenizer.
    """

    def content(parts: Sequence[Any]) -> Any:
        if plain:
            return "".join(parts)
        return [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part.image}
            for part in parts
        ]

    shown = [Picture(image, "prompt") for image in images]
    messages: Messages = [
        {
            **message,
            "content": content([*(shown if message["role"] == "user" else []), message["content"]]),
        }
        for message in prompt
    ]
    for turn, observation in zip(turns, observations, strict=False):
        messages.append({"role": "assistant", "content": content([turn])})
        message = {"role": observation.role, "content": content(observation.parts)}
        messages.append(message if observation.name is None else {**message, "name": observation.name})
    return messages


def whole(encoder: Encoder, messages: Messages) -> dict[str, Any]:
    """The processor's own encoding of a conversation up to the place of the next turn."""
    encoded = encoder.processing_class.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **encoder.settings
    )
    return dict(encoded)


def same_features(joined: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Asserts that image features are those of the processor."""
    names = {name for name, value in inputs.items() if isinstance(value, Tensor)}
    names -= {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}
    assert set(joined) == names
    for name, value in joined.items():
        assert value.shape == inputs[name].shape, name
        assert torch.equal(value, inputs[name]), name


def turns_of(piece_encoder: PieceEncoder, texts: Sequence[str]) -> list[Piece]:
    """Written turns, as trajectories hold them."""
    return [piece_encoder.turn({"role": "assistant", "content": text}) for text in texts]
