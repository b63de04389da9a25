"""Rows to token ids, in one place: the trainers, the length checks and `check` all read what is encoded here.

A conversation is rendered whole. A turn of the assistant begins where its generation prompt ends and ends where the
conversation up to it ends, so both must be beginnings of the whole. What a template cannot place so, or what it
leaves out of a turn, is refused: the loss would be that of an answer which nobody wrote, or of one to another prompt
than the model gets.

The ids are those of TRL's own `_tokenize` of the whole text. Only where a token would straddle the border of a turn
are the parts encoded by themselves: the prompt then is the one that the model sees when it answers.
"""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.chat_template_utils import get_training_chat_template
from trl.data_utils import prepare_multimodal_messages

from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendered_with import switches_of, tools_of
from hpt_trl.data.row_images import images_for, with_images
from hpt_trl.data.turns import open_mark, shown, turn_fault, unpaired_mark
from hpt_trl.errors import UserError

# Of a row that came as one conversation (`messages`): the turns of its prompt are trained as well.
WHOLE = "whole_conversation"
_REMEDY = (
    "Write the thoughts with the marks that the template expects, its opening one included, use a template that keeps "
    "them, or write prompt and answer as texts (`conversational: false`)."
)

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """The token ids of a row, and which of them have a loss.

    Attributes:
        ids: prompt and answer; of a row with images what begins with the first trained turn.
        trained: 1 where a token has a loss, else 0; one for each id.
        turns: turns of the assistant, those of the prompt included.
        trained_turns: those of them that have a loss.
    """

    ids: list[int]
    trained: list[int]
    turns: int = 1
    trained_turns: int = 1

    @property
    def labels(self) -> list[int]:
        """The ids, with -100 for those without a loss."""
        return [token if trained else -100 for token, trained in zip(self.ids, self.trained, strict=True)]

    @property
    def context(self) -> int:
        """Number of tokens before the first that has a loss."""
        return self.trained.index(1) if 1 in self.trained else len(self.ids)


class Encoder:
    """Renders and encodes rows with one tokenizer.

    Args:
        processing_class: a tokenizer, or the processor of a vision-language model.
        settings: `chat_template_kwargs` of the recipe.
        reads_rows: whether the columns `tools` and `chat_template_kwargs` of a row are part of its rendering, as for
            trainers on whole rows. Rollouts know the recipe's settings alone.
        comparisons: whether the trainer is one on comparisons (DPO, reward models), which renders them with the
            template as it is. For others TRL's training variant of a known template is taken where the template itself
            does not do, and a last turn that the template does not end gets an end-of-sequence token.
        end_ids: token ids at which the model stops; by default all special tokens, one of which a template writes
            behind a turn.
        embedded: for how many tokens the model has embeddings, where the tokenizer knows more of them.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        settings: dict[str, Any] | None = None,
        *,
        reads_rows: bool = True,
        comparisons: bool = False,
        end_ids: Sequence[int] | None = None,
        embedded: int | None = None,
    ):
        self.processing_class: Any = processing_class
        self.is_processor = isinstance(processing_class, ProcessorMixin)
        self.tokenizer: Any = self.processing_class.tokenizer if self.is_processor else processing_class
        self.settings, self.reads_rows, self.comparisons = dict(settings or {}), reads_rows, comparisons
        self.end_ids = _special_ids(self.tokenizer) if end_ids is None else list(end_ids)
        self.embedded = embedded

    @property
    def state(self) -> Hashable:
        """What the ids of a row depend on, beside the row."""
        own = self.processing_class, self.processing_class.chat_template, self.tokenizer.eos_token
        return *own, repr(self.settings), self.reads_rows, self.comparisons, tuple(self.end_ids)

    # Whole rows.

    def prompt(self, row: dict[str, Any]) -> list[int]:
        """Ids of a row's prompt, on which the model answers."""
        if isinstance(row["prompt"], str):
            return self.prompt_ids(row["prompt"])
        prompt = with_images(row["prompt"], images_for(row, row["prompt"])) if self.is_processor else row["prompt"]
        ids = self.ids(self.render(prompt, self._arguments(row), generation_prompt=True))
        if not ids:
            raise UserError("the chat template writes nothing of the prompt; name another one (`chat_template_path`).")
        return ids

    def reads_images(self, columns: Iterable[str]) -> bool:
        """Whether rows with these columns are read by TRL's collators for images."""
        return self.is_processor and not {*IMAGES}.isdisjoint(columns)

    def answered(self, row: dict[str, Any], column: str, *, last_turn_only: bool = False) -> Encoded:
        """Prompt and answer of a row, with a loss on the turns of the assistant.

        The turns of the answer have a loss; of a row that came as one conversation, those of the prompt as well.

        Args:
            column: the answer's, a text or messages like the prompt.
            last_turn_only: only the last turn has a loss.

        Raises:
            UserError: the answer would be trained otherwise than it is written; the message shows both.
        """
        prompt, answer = row["prompt"], row[column]
        if isinstance(prompt, str) != isinstance(answer, str):
            raise UserError(
                f"`prompt` is {_kind(prompt)} but the answer in `{column}` is {_kind(answer)}; write both as text or "
                "both as messages."
            )
        if isinstance(prompt, str):
            return self._answered_text(prompt, answer)
        whole = bool(row.get(WHOLE))
        if not whole and prompt[-1]["role"] == "assistant":
            raise UserError(
                f"`prompt` ends with a turn of the assistant, {shown(str(prompt[-1].get('content')))}, which the chat "
                "template ends: the answer would be a second turn after it. Write that text as the beginning of the "
                "answer, and end the prompt with the user's message."
            )
        turns, trained = assistant_turns(prompt, answer, whole=whole, last_turn_only=last_turn_only)
        if not trained:
            raise UserError("no turn of the assistant is trained; drop the row.")
        images = images_for(row, [*prompt, *answer]) if self.is_processor else []
        if self.is_processor:
            prompt, answer = with_images(prompt, images), prepare_multimodal_messages(answer)
        text, spans = self._located([*prompt, *answer], trained, self._arguments(row))
        borders = [border for span in spans for border in span]
        if self.is_processor and images and borders:
            # What stands for an image in the prompt is widened when the image is read.
            text, borders = text[borders[0] :], [border - borders[0] for border in borders]
        ids, borders = self._encoded(text, borders)
        mask = [0] * len(ids)
        for start, stop in zip(borders[::2], borders[1::2], strict=True):
            mask[start:stop] = [1] * (stop - start)
        if mask[-1] and not self.comparisons and not self._is_ended(ids):
            ids, mask = [*ids, self.tokenizer.eos_token_id], [*mask, 1]
        return Encoded(ids, mask, turns=len(turns), trained_turns=len(trained))

    def document(self, text: str) -> Encoded:
        """A text that is trained on as a whole, with its end-of-sequence token."""
        ids = self._of_text(self._ended(text))
        return Encoded(ids, [1] * len(ids))

    # Texts.

    def _answered_text(self, prompt: str, answer: str) -> Encoded:
        if fault := unpaired_mark(open_mark(prompt) + answer):
            raise UserError(f"the answer {shown(answer)}: {fault}. Write the thoughts with both marks.")
        ended = prompt + self._ended(answer)
        before, whole = self.prompt_ids(prompt), self._of_text(ended)
        if self.ends_texts:
            whole = whole[:-1]
        if whole[: len(before)] != before:
            whole = before + self.ids(self._ended(answer))
        return Encoded(whole, [0] * len(before) + [1] * (len(whole) - len(before)))

    def _ended(self, text: str) -> str:
        end = self.tokenizer.eos_token
        if end is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, which has to close every answer and document; set its "
                "`eos_token` to one of its tokens."
            )
        return text if text.endswith(end) else text + end

    @cached_property
    def ends_texts(self) -> bool:
        """Whether the tokenizer writes an end-of-sequence token behind every text."""
        return self.tokenizer(text="a", verbose=False)["input_ids"][-1:] == [self.tokenizer.eos_token_id]

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a text that is to go on: without the token by which some tokenizers end every text."""
        ids = self._of_text(text)
        return ids[:-1] if self.ends_texts else ids

    def _of_text(self, text: str) -> list[int]:
        return self._embedded(self.tokenizer(text=text, verbose=False)["input_ids"])

    def _embedded(self, ids: list[int]) -> list[int]:
        beyond = None if self.embedded is None else next((token for token in ids if token >= self.embedded), None)
        if beyond is not None:
            raise UserError(
                f"the token {self.tokenizer.decode([beyond])!r} has the id {beyond}, but the model has embeddings for "
                f"{self.embedded} tokens. Name the tokenizer's own model, or widen its matrix "
                "(`resize_token_embeddings`) and save it."
            )
        return ids

    def _is_ended(self, ids: list[int]) -> bool:
        """Whether the last token that is not blank ends a turn."""
        last = next((token for token in reversed(ids) if self.tokenizer.decode([token]).strip()), None)
        return last in self.end_ids

    def ids(self, text: str) -> list[int]:
        """Ids of a text that the chat template has rendered."""
        return self._embedded(self.tokenizer(text=text, add_special_tokens=False, verbose=False)["input_ids"])

    # Conversations.

    def _arguments(self, row: dict[str, Any]) -> dict[str, Any]:
        if not self.reads_rows:
            return self.settings
        own = switches_of(row.get("chat_template_kwargs"))
        return {**self.settings, **own, "tools": tools_of(row.get("tools"))}

    def render(self, messages: Messages, arguments: dict[str, Any], *, generation_prompt: bool = False) -> str:
        """Messages as the chat template writes them.

        Raises:
            UserError: the template does not take them, or not their typed parts.
        """
        parts = [message["content"] for message in messages if isinstance(message.get("content"), list)]
        if not self.is_processor and any(part.get("type") == "image" for content in parts for part in content):
            raise UserError("the row has images, and the model reads none; name a vision-language model.")
        text = self._rendered(messages, arguments, generation_prompt)
        if any(str(part) in text or json.dumps(part, ensure_ascii=False, default=str) in text for part in parts):
            raise UserError(
                "the chat template writes typed parts as they are stored; write `content` as one text, or use a "
                "template that knows parts."
            )
        return text

    def _rendered(self, messages: Messages, arguments: dict[str, Any], generation_prompt: bool) -> str:
        try:
            return self.processing_class.apply_chat_template(
                messages, add_generation_prompt=generation_prompt, tokenize=False, **arguments
            )
        # What templates raise of themselves, and what they come to on a message that they do not expect.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            said = f"the chat template does not render these messages ({roles:.200}): {reason}"
            if any(isinstance(message.get("content"), list) for message in messages):
                said += ". Where it knows no typed parts, write `content` as one text."
            raise UserError(said) from error

    @cached_property
    def _training_template(self) -> str | None:
        """TRL's variant of a known template that renders every turn alike; None for others."""
        try:
            return get_training_chat_template(self.processing_class)
        except ValueError:
            return None

    def _located(
        self, messages: Messages, turns: list[int], arguments: dict[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            return self._locate(messages, turns, arguments)
        except UserError as fault:
            if self.comparisons or self._training_template is None:
                raise
            try:
                text, spans = self._locate(messages, turns, arguments | {"chat_template": self._training_template})
                prompt = self.render(messages[: turns[0]], arguments, generation_prompt=True)
            except UserError:
                raise fault from None
            # The variant is for the training alone; the model answers what the template itself renders.
            if not text.startswith(prompt):
                raise
            return text, spans

    def _locate(
        self, messages: Messages, turns: list[int], arguments: dict[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where the named turns begin and end in it."""
        whole, spans = self.render(messages, arguments), []
        for place in turns:
            before = self.render(messages[:place], arguments, generation_prompt=True)
            if not whole.startswith(before):
                raise UserError(
                    f"the chat template does not continue the prompt that the model answers with message {place + 1} "
                    f"of the conversation.\n{_beside('the prompt ends', before, 'the conversation', whole)}\n{_REMEDY}"
                )
            after = whole if place == len(messages) - 1 else self.render(messages[: place + 1], arguments)
            if not whole.startswith(after):
                raise UserError(
                    f"the chat template renders message {place + 1} otherwise where others follow it, so that its turn "
                    f"cannot be found.\n{_beside('alone', after, 'the conversation', whole)}\nUse a template that "
                    "renders every turn alike (TRL's training templates do), or train on the last turn alone "
                    "(`train_on_turns: last`)."
                )
            turn = open_mark(before) + whole[len(before) : len(after)]
            if fault := turn_fault(messages[place], turn):
                text = messages[place].get("content")
                raise UserError(
                    f"message {place + 1} of the conversation would not be trained as it is written: {fault}.\n"
                    f"  the message: {shown(str(text))}\n  as rendered: {shown(turn)}\n{_REMEDY}"
                )
            spans.append((len(before), len(after)))
        return whole, spans

    def _encoded(self, text: str, borders: list[int]) -> tuple[list[int], list[int]]:
        """Ids of a text, and how many of them stand before each border, a place in the text."""
        whole, counts = self.ids(text), []
        for border in borders:
            part = whole if border == len(text) else self.ids(text[:border])
            if whole[: len(part)] != part:
                break
            counts.append(len(part))
        if len(counts) == len(borders):
            return whole, counts
        ids: list[int] = []
        counts = []
        for start, stop in pairwise([0, *borders, len(text)]):
            ids += self.ids(text[start:stop])
            counts.append(len(ids))
        if self.tokenizer.decode(ids) != self.tokenizer.decode(whole):
            raise UserError(
                "a token straddles the border between the prompt and the answer, and the tokenizer writes the two "
                f"parts otherwise than the whole: {shown(text[max(borders[0] - 40, 0) : borders[0] + 40])}. Begin the "
                "answer, or end the prompt, at the border of a word."
            )
        return ids, counts[:-1]


def assistant_turns(
    prompt: Messages, answer: Messages, *, whole: bool, last_turn_only: bool
) -> tuple[list[int], list[int]]:
    """The places of the assistant's turns among the messages of prompt and answer, and of those that are trained.

    Args:
        whole: the two are one conversation, whose turns are all trained.
    """
    messages = [*prompt, *answer]
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    # A turn that stands first answers nothing. A weight of 0 is how OpenAI's files mark a turn as context.
    trained = [
        place for place in turns if place >= (1 if whole else len(prompt)) and messages[place].get("weight") != 0
    ]
    return turns, trained[-1:] if last_turn_only else trained


def _special_ids(tokenizer: Any) -> list[int]:
    added = [token for token, known in tokenizer.added_tokens_decoder.items() if known.special]
    return [*tokenizer.all_special_ids, *added]


def _beside(name: str, text: str, other_name: str, other: str) -> str:
    """Two texts around the place where they part."""
    shared = next((at for at, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(text), len(other)) if shared is None else shared
    start, stop = max(shared - 60, 0), shared + 60
    lead = "…" if start else ""
    return f"  {name}: {lead}{text[start:stop]!r}\n  {other_name} reads: {lead}{other[start:stop]!r}"


def _kind(value: Any) -> str:
    return "a list of messages" if isinstance(value, list) else "text" if isinstance(value, str) else repr(value)
