"""The environment of VRAG: a search shows the next page that was not seen, a box shows a part of it, an answer ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpt_trl.environments.protocol import Messages, Observation, Picture, Turn
from hpt_trl.errors import UserError
from hpt_trl.methods.vrag.actions import TOOLS, Action, Answer, Crop, Invalid, Search, read_action
from hpt_trl.methods.vrag.prompt import FOLDED, instructions, with_instructions
from hpt_trl.methods.vrag.references import references_of
from hpt_trl.methods.vrag.settings import VragOptions
from hpt_trl.retrieval.engine import SearchEngine
from hpt_trl.retrieval.measures import recall_at
from hpt_trl.retrieval.pages import fit_pixels, to_raw

# Pages that are asked for beyond those that a rollout has seen.
BEYOND = 10
# Why a rollout ends that has had its last turn without an answer.
TURNS = "turns"


@dataclass
class _Shown:
    """The last page that was shown."""

    name: str
    raw: Any  # PIL image
    size: tuple[int, int]  # of the shown image


class PageSearch:
    """One rollout's search for pages.

    Args:
        engine: is asked for pages.
        options: see `VragOptions`.
        turns: how many turns a rollout has.
        images: how many images the model sees at a time, None for all.
    """

    def __init__(self, engine: SearchEngine, options: VragOptions, *, turns: int, images: int | None = None):
        self.engine, self.options = engine, options
        self.tools: Sequence[dict[str, Any]] = ()
        if options.vocabulary == "tools":
            self.tools = [tool for tool in TOOLS if options.crops or tool["function"]["name"] != "crop"]
        self._turns, self._images = turns, images
        self.start({})

    def prompt(self, messages: Messages) -> Messages:
        if not self.options.instructions:
            return messages
        options = self.options
        text = instructions(options.vocabulary, crops=options.crops, turns=self._turns, images=self._images)
        return with_instructions(messages, text)

    def start(self, row: dict[str, Any]) -> None:
        self._references = references_of(row)
        self._answer: str | None = None
        self._retrieved: list[str] = []
        self._crops: list[dict[str, Any]] = []
        self._last: _Shown | None = None
        self._newest = ""  # what `act` returned last: a page, a crop, or a text
        self._searches = self._cropped = self._invalid = self._acted = 0

    def act(self, turn: Turn) -> Observation | str:
        self._acted += 1
        self._newest = ""
        action = read_action(turn, self.options.vocabulary)
        if isinstance(action, Crop) and not self.options.crops:
            action = Invalid("pages are not cut here")
        if turn.cut:
            # A turn that was cut may end on an action that the model had not done with.
            self._invalid += 1
            return TURNS
        if isinstance(action, Answer):
            self._answer = action.text
            return "answer"
        done = self._done(action, turn)
        if isinstance(done, Invalid):
            self._invalid += 1
            done = self._told(action, f"That was no valid action: {done.why}. {self._how()}")
        return TURNS if turn.last else done

    def ends_on(self, turn: Turn) -> bool:
        """Whether a rollout ends on a turn, whatever was shown before it."""
        return isinstance(read_action(turn, self.options.vocabulary), Answer)

    def unseen(self) -> None:
        if self._newest == "page":
            self._retrieved.pop()
        elif self._newest == "crop":
            self._crops.pop()

    def facts(self) -> dict[str, Any]:
        return {
            "final_answer": self._answer,
            "retrieved_pages": list(self._retrieved),
            "crops": list(self._crops),
            "searches": self._searches,
            "invalid_actions": self._invalid,
        }

    def measures(self) -> dict[str, float]:
        recall = math.nan
        if self._references:
            recall = recall_at(max(len(self._retrieved), 1), self._retrieved, self._references)
        return {
            "vrag/turns": float(self._acted),
            "vrag/searches": float(self._searches),
            "vrag/crops": float(self._cropped),
            "vrag/invalid_actions": self._invalid / self._acted if self._acted else math.nan,
            "vrag/answered": float(self._answer is not None),
            "vrag/recall": recall,
        }

    def _done(self, action: Action, turn: Turn) -> Observation | Invalid:
        """What a search or a crop comes to; what the last turn asks for is counted, and not shown any more."""
        if isinstance(action, Search):
            self._searches += 1
            return self._told(action, "") if turn.last else self._searched(action)
        if isinstance(action, Crop):
            return self._cut_out(action, turn.last)
        assert isinstance(action, Invalid)
        return action

    def _searched(self, action: Search) -> Observation:
        [ranking] = self.engine.search([action.query], len(self._retrieved) + BEYOND)
        name = next((hit.name for hit in ranking if hit.name not in self._retrieved), None)
        if name is None:
            more = "no other page" if ranking else "no page"
            return self._told(action, f"The search found {more} for {action.query!r}. Try other words. {self._how()}")
        raw = self.engine.image(name)
        try:
            shown = fit_pixels(raw, self.options.min_pixels, self.options.max_pixels)
        except UserError as error:
            raise UserError(f"page {name}: {error}") from error
        self._retrieved.append(name)
        self._last = _Shown(name, raw, shown.size)
        return self._pictured(action, Picture(shown, name, "page", raw.size))

    def _cut_out(self, action: Crop, last: bool) -> Observation | Invalid:
        if self._last is None:
            return Invalid("there is no page yet to look at closer; search first")
        page = self._last
        box = to_raw(action.box, page.size, page.raw.size)
        if box is None:
            return Invalid(f"the box is outside of the page, which has {page.size[0]} x {page.size[1]} pixels")
        try:
            shown = fit_pixels(page.raw.crop(box), self.options.min_pixels, self.options.max_pixels)
        except UserError:
            return Invalid("the box is too narrow to be shown")
        self._cropped += 1
        if not last:
            self._crops.append({"page": page.name, "box": list(box)})
        return self._pictured(action, Picture(shown, page.name, "crop", page.raw.size, box))

    def _pictured(self, action: Action, picture: Picture) -> Observation:
        self._newest = picture.kind
        size = f"{picture.image.width} x {picture.image.height}"
        return Observation(
            (picture, f"{picture.kind} {picture.name}, {size} pixels"),
            folded=FOLDED.format(kind=picture.kind, name=picture.name),
            **self._role(action),
        )

    def _told(self, action: Action, text: str) -> Observation:
        return Observation((text,), **self._role(action))

    def _role(self, action: Action) -> dict[str, Any]:
        names = {Search: "search", Crop: "crop"}
        if self.options.vocabulary == "tags" or type(action) not in names:
            return {}
        return {"role": "tool", "name": names[type(action)]}

    def _how(self) -> str:
        crop = self.options.crops
        if self.options.vocabulary == "tools":
            return f"Call one tool: search, {'crop, ' if crop else ''}or answer."
        box = "<bbox>[x1, y1, x2, y2]</bbox>, " if crop else ""
        return f"Think in <think></think>, then write one of <search>query</search>, {box}<answer>answer</answer>."
