"""Faults of environments: what they raise, and what they return that they may not, with name, place and row."""

import re
import sys
from typing import Any

import pytest
from PIL import Image

from hpt_trl.data.reading.places import ROW, Piece, Source
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.faults import columns, named, placed
from hpt_trl.environments.protocol import Observation, Picture
from hpt_trl.errors import UserError
from tests.helpers.episodes import PROMPT, Scripted, encoder_of, episode_of, picture, turn_ids


@pytest.fixture(scope="module")
def encoders(vlm_path, tiny_model_path) -> dict[str, Encoder]:
    return {"text": encoder_of(tiny_model_path), "idefics3": encoder_of(vlm_path)}


class Broken(Scripted):
    """Raises in one method, or returns something there."""

    def __init__(self, method: str, returned: Any = None, raises: bool = True):
        super().__init__([Observation((picture(32, 32), "page 1"))])
        self.method, self.returned, self.raises = method, returned, raises

    def _broken(self, name: str, otherwise: Any) -> Any:
        if name != self.method:
            return otherwise
        if self.raises:
            raise KeyError("shelf")
        return self.returned

    def prompt(self, messages):
        return self._broken("prompt", super().prompt(messages))

    def start(self, row):
        return self._broken("start", super().start(row))

    def act(self, turn):
        return self._broken("act", super().act(turn))

    def unseen(self):
        return self._broken("unseen", super().unseen())

    def facts(self):
        return self._broken("facts", super().facts())

    def measures(self):
        return self._broken("measures", super().measures())


def played(encoder: Encoder, environment: Scripted, **limits: Any) -> None:
    acting = Acting(TurnEnvironments(lambda: environment, **limits), encoder, drawn=100)
    episode = acting.episode({"prompt": PROMPT, ROW: 7})
    episode.take(turn_ids(encoder, "go"))
    episode.facts()
    episode.measures()


@pytest.mark.parametrize("method", ["prompt", "start", "act", "unseen", "facts", "measures"])
def test_what_an_environment_raises_is_told_with_name_place_and_row(encoders, method):
    limits = {"max_context_length": 45} if method == "unseen" else {}
    with pytest.raises(UserError) as told:
        played(encoders["idefics3"], Broken(method), **limits)
    message = str(told.value)
    assert f"`{method}` of the environment Broken raised KeyError: 'shelf'" in message
    assert re.search(r"\(\S+test_faults\.py, line \d+\)", message)
    assert message.startswith("row 7: ")


def test_facts_and_measures_of_a_rollout_are_told_with_its_row(encoders):
    for method in ("facts", "measures"):
        environment = Broken("none")
        episode = Acting(TurnEnvironments(lambda: environment), encoders["text"], drawn=100).episode(  # noqa: B023
            {"prompt": PROMPT, ROW: 7}
        )
        environment.method = method
        with pytest.raises(UserError, match=f"row 7: `{method}` of the environment Broken raised"):
            getattr(episode, method)()


@pytest.mark.parametrize("method", ["start", "act", "measures"])
def test_an_environment_cannot_leave_the_process(encoders, method):
    class Leaves(Broken):
        def _broken(self, name, otherwise):
            return sys.exit(0) if name == self.method else otherwise

    with pytest.raises(UserError, match=f"row 7: `{method}` of the environment Leaves raised SystemExit: 0"):
        played(encoders["idefics3"], Leaves(method))


def test_a_row_is_named_once(encoders):
    assert str(named(named(UserError("no."), {ROW: 3}), {ROW: 3})) == "row 3: no."
    assert str(named(UserError("no."), {})) == "no."
    with pytest.raises(UserError, match=r"^row 7: .* name a vision-language model"):
        played(encoders["text"], Scripted([Observation((picture(32, 32),))]))


def test_a_complaint_gets_the_name_of_its_data():
    said = UserError("row 7: the shelf is empty.")
    shop = Source("shop.jsonl", [Piece("shop.jsonl", by_line=True)])
    assert str(placed(said, [shop])) == "shop.jsonl, line 7: the shelf is empty."
    assert str(placed(said, [shop, shop])) == "shop.jsonl, line 7: the shelf is empty."
    both = placed(said, ["pages", "pages (test)"])
    assert str(both) == "pages, row 7 or pages (test), row 7: the shelf is empty."
    other = UserError("search_index: row 7: no.")
    assert placed(other, [shop]) is other


def test_all_rollouts_tell_the_same():
    assert columns([{"a/b": 1.0}, {"a/b": 2.0}], "measures") == {"a/b": [1.0, 2.0]}
    with pytest.raises(UserError, match="`measures` of the environment tells `c/d` of some rollouts alone"):
        columns([{"a/b": 1.0}, {"a/b": 1.0, "c/d": 2.0}], "measures")


def test_complaints_of_an_environment_are_its_own(encoders):
    class Picky(Scripted):
        def start(self, row):
            raise UserError("the shelf is empty.")

    with pytest.raises(UserError, match=r"^row 7: the shelf is empty\.$"):
        played(encoders["text"], Picky([]))


@pytest.mark.parametrize(
    ("method", "returned", "reason"),
    [
        (
            "act",
            None,
            "`act` of Broken returned None; allowed: an Observation of texts and Pictures of PIL images \\(RGB",
        ),
        ("act", "", "`act` of Broken returned ''; allowed"),
        ("act", 3, "`act` of Broken returned 3; allowed"),
        ("act", ["answer"], "`act` of Broken returned"),
        ("act", Observation("a text"), "`act` of Broken returned Observation.*; allowed: an Observation of texts"),
        ("act", Observation((3,)), "`act` of Broken returned Observation.*; allowed: an Observation of texts"),
        ("act", Observation(("a", None)), "`act` of Broken returned Observation.*; allowed: an Observation of texts"),
        (
            "act",
            Observation((Picture("page.png", "page"),)),
            "`act` of Broken returned Observation.*; allowed: an Observation of texts",
        ),
        ("prompt", None, "`prompt` of Broken returned None; allowed: a list of messages"),
        ("prompt", "Which?", "`prompt` of Broken returned 'Which\\?'; allowed: a list of messages"),
        ("prompt", [], "`prompt` of Broken returned \\[\\]; allowed"),
        ("prompt", ["Which?"], "`prompt` of Broken returned"),
        ("prompt", [{"content": "Which?"}], "`prompt` of Broken returned .*each with `role` \\(system, "),
        ("prompt", [{"role": "banana", "content": "Which?"}], "`prompt` of Broken returned"),
        ("prompt", [{"role": "user", "content": 5}], "`prompt` of Broken returned"),
        ("prompt", [{"role": "user"}], "`prompt` of Broken returned"),
        *(
            ("act", Observation((Picture(Image.new(mode, size), "page"),)), "allowed: .*RGB, of a pixel at least")
            for mode, size in (("CMYK", (9, 9)), ("F", (9, 9)), ("L", (9, 9)), ("RGB", (0, 0)), ("RGB", (9, 0)))
        ),
        *(
            ("act", Observation((Picture(Image.new("RGB", (9, 9)), **fields),)), "allowed: an Observation")
            for fields in (
                {"name": 3},
                {"name": "a", "kind": ""},
                {"name": "a", "raw_size": 9},
                {"name": "a", "raw_size": (9, None)},
                {"name": "a", "box": (1, 2, 3)},
            )
        ),
        ("act", Observation(("a",), folded=5), "`act` of Broken returned Observation"),
        ("act", Observation(("a",), role="banana"), "`act` of Broken returned Observation"),
        ("act", Observation(("a",), role="tool", name=5), "`act` of Broken returned Observation"),
        *(
            ("facts", {name: 1}, f"`facts` of Broken returned .*none of which is .*{name}")
            for name in ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
        ),
        ("measures", {"loss": 1.0}, "`measures` of Broken returned .*e.g. `shop/bought`"),
        ("measures", {"shop/bought": 1.0, "reward": 5.0}, "`measures` of Broken returned"),
        ("facts", None, "`facts` of Broken returned None; allowed"),
        ("facts", ["a"], "`facts` of Broken returned"),
        ("measures", None, "`measures` of Broken returned None; allowed"),
        ("measures", {"shop/a": "many"}, "`measures` of Broken returned"),
        ("measures", {"shop/a": None}, "`measures` of Broken returned"),
    ],
)
def test_wrong_values_of_an_environment_are_told(encoders, method, returned, reason):
    with pytest.raises(UserError, match=reason):
        played(encoders["idefics3"], Broken(method, returned, raises=False))


def test_prompts_that_are_texts_are_refused(encoders):
    with pytest.raises(UserError, match="an environment needs prompts that are messages"):
        episode_of(encoders["text"], [], {"prompt": "Which?"})
