"""Prompts, turns and observations as the token ids that a chat template gives them.

An observation is rendered behind a short conversation that stands for all that came before, and what the template adds
is taken. So a rollout grows by its own tokens: what the model drew is never decoded and encoded again.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from hpt_trl.data.rendering import Encoder
from hpt_trl.data.row_images import with_images
from hpt_trl.data.turns import shown, turn_fault
from hpt_trl.environments.calls import read_calls
from hpt_trl.environments.features import TOKEN_TYPES, features_of
from hpt_trl.environments.pieces import Piece
from hpt_trl.environments.protocol import Messages, Observation, Picture
from hpt_trl.errors import UserError

# Stands for a turn of the assistant in the conversation before an observation.
_MARK = "The turn before."


class PieceEncoder:
    """Encodes the pieces of rollouts with one processor or tokenizer.

    Args:
        encoder: the trainer's.
        tools: schemas of the tools that prompts name.

    Raises:
        UserError: there are tools, and the chat template has no calls of tools, or nobody can take them out of a turn.
    """

    def __init__(self, encoder: Encoder, tools: Sequence[dict[str, Any]] = ()):
        self.encoder, self.tools = encoder, list(tools)
        if self.tools:
            read_calls(encoder)
        self._texts: dict[tuple[str, str, str | None], Piece] = {}

    @cached_property
    def image_ids(self) -> frozenset[int]:
        """Tokens that stand for images, which a model must not draw: no image belongs to them."""
        processor = self.encoder.processing_class
        if not self.encoder.is_processor:
            return frozenset()
        names = ("image_token_id", "video_token_id")
        found = {getattr(processor, name, None) for name in names}
        found |= {_id_of(self.encoder.tokenizer, getattr(processor, "image_token", None))}
        return frozenset(token for token in found if token is not None)

    def prompt(self, messages: Messages, images: Sequence[Any] = ()) -> Piece:
        """A prompt up to the place where the model answers.

        Args:
            messages: with one part of type `image` for each image, or none at all.
            images: PIL images.
        """
        if self.encoder.is_processor:
            messages = with_images(messages, list(images))
        return self._piece(self._render(messages, generation_prompt=True), list(images))

    def turn(self, message: dict[str, Any]) -> Piece:
        """A turn of the assistant as the model would draw it, up to and with the token that ends it.

        Raises:
            UserError: the chat template does not write it as it stands, or ends it before its last word, or it holds a
                token that stands for an image.
        """
        before = self._render([_user(self.encoder)], generation_prompt=True)
        whole = self._render([_user(self.encoder), _typed(message, self.encoder)])
        if not whole.startswith(before):
            raise UserError("the chat template does not continue the prompt that the model answers with its answer.")
        text = whole[len(before) :]
        if fault := turn_fault(message, text):
            raise UserError(f"{fault}.\n  the turn: {shown(str(message.get('content')))}\n  as rendered: {shown(text)}")
        ids = self._ids(text)
        if not self.image_ids.isdisjoint(ids):
            raise UserError(f"a turn holds a token that stands for an image, and has none: {shown(text)}.")
        ends = self.encoder.end_ids
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        if end is None:
            return Piece([*ids, self.encoder.tokenizer.eos_token_id], {})
        if said := self.encoder.tokenizer.decode([token for token in ids[end + 1 :] if token not in ends]).strip():
            raise UserError(f"a turn goes on after an end-of-sequence token, at which a rollout stops: {shown(said)}.")
        return Piece(ids[: end + 1], {})

    def observation(self, observation: Observation) -> Piece:
        """An observation from behind the end of the turn before it up to the place where the model goes on."""
        if observation.pictures:
            return self._observation(observation)
        key = (observation.text, observation.role, observation.name)
        if key not in self._texts:
            if len(self._texts) >= 1024:
                self._texts.clear()
            self._texts[key] = self._observation(observation)
        return self._texts[key]

    def _observation(self, observation: Observation) -> Piece:
        before = [_user(self.encoder), _typed(self._turn_before(observation), self.encoder)]
        message = {"role": observation.role, "content": self._content(observation)}
        if observation.name is not None:
            message["name"] = observation.name
        prefix, whole = self._render(before), self._render([*before, message], generation_prompt=True)
        if not whole.startswith(prefix):
            raise UserError(
                f"the chat template renders a turn otherwise once a message of `{observation.role}` follows it; use a "
                "template that renders every turn alike."
            )
        return self._piece(self._behind_the_end(prefix) + whole[len(prefix) :], [p.image for p in observation.pictures])

    def _turn_before(self, observation: Observation) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": "assistant", "content": _MARK}
        if observation.role == "tool":
            call = {"name": observation.name or "tool", "arguments": {}}
            turn["tool_calls"] = [{"type": "function", "function": call}]
        return turn

    def _behind_the_end(self, prefix: str) -> str:
        """What the template writes behind the token that ends a turn, which a rollout stops at."""
        place = prefix.rfind(_MARK)
        if place < 0:
            raise UserError("the chat template leaves out the text of a turn; it cannot be gone on behind it.")
        rest = prefix[place + len(_MARK) :]
        ends = [self.encoder.tokenizer.convert_ids_to_tokens(token) for token in self.encoder.end_ids]
        found = [(rest.find(end) + len(end)) for end in ends if isinstance(end, str) and end and end in rest]
        return rest[min(found) :] if found else rest

    def _content(self, observation: Observation) -> Any:
        if not self.encoder.is_processor:
            if observation.pictures:
                raise UserError(
                    "the environment shows images, but the model reads text alone; name a vision-language model."
                )
            return self._plain(observation.text)
        return [self._part(part) for part in observation.parts]

    def _part(self, part: str | Picture) -> dict[str, Any]:
        return {"type": "text", "text": self._plain(part)} if isinstance(part, str) else {"type": "image"}

    def _plain(self, text: str) -> str:
        """A text in which no words are special tokens: what a page says must not end a turn, or stand for an image."""
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @cached_property
    def _special(self) -> list[str]:
        tokenizer = self.encoder.tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        # A tokenizer may hold those of images for words.
        images = tokenizer.convert_ids_to_tokens(sorted(self.image_ids))
        return sorted({*tokenizer.all_special_tokens, *added, *images}, key=len, reverse=True)

    def _render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        arguments = self.encoder.settings | {"tools": self.tools or None}
        return self.encoder.render(messages, arguments, generation_prompt=generation_prompt)

    def _ids(self, text: str) -> list[int]:
        return self.encoder.ids(text)

    def _piece(self, text: str, images: list[Any]) -> Piece:
        if not images:
            return Piece(self._ids(text), {})
        processor = self.encoder.processing_class
        try:
            inputs = dict(processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=False))
        except ValueError as error:
            raise UserError(f"the processor does not take these images: {error}") from error
        types = next((inputs[name][0].tolist() for name in TOKEN_TYPES if name in inputs), None)
        features = features_of(inputs, type(processor).__name__)
        return Piece(inputs["input_ids"][0].tolist(), features, tuple(images), types)

    @property
    def type_name(self) -> str | None:
        """What the processor calls the types of tokens; None where it gives none."""
        names = self.encoder.processing_class.model_input_names if self.encoder.is_processor else []
        return next((name for name in TOKEN_TYPES if name in names), None)


def _user(encoder: Encoder) -> dict[str, Any]:
    return _typed({"role": "user", "content": "?"}, encoder)


def _typed(message: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    """A message as the template of a processor reads it: its text as a part."""
    if not encoder.is_processor or not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _id_of(tokenizer: Any, token: Any) -> int | None:
    return None if token is None else tokenizer.convert_tokens_to_ids(str(token))
