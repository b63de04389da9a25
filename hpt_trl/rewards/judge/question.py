"""What the judge is asked, and how its reply is read."""

import re
from dataclasses import dataclass
from pathlib import Path

from hpt_trl.errors import UserError

_PLACES = ("question", "reference", "answer")
_PLACE = re.compile(rf"\{{({'|'.join(_PLACES)})\}}")
_RIGHT = ("correct", "true", "yes")
_WRONG = ("incorrect", "false", "no", "wrong")
_LABEL = re.compile(r"(?:verdict|judge|judgement|judgment|answer|grade) ?:")


@dataclass(frozen=True)
class Question:
    """An answer to be judged.

    Attributes:
        question: What was asked.
        references: Accepted answers, one at least.
        answer: The one to be judged.
    """

    question: str
    references: tuple[str, ...]
    answer: str

    def prompt(self, template: str) -> str:
        """Returns the template with its places filled in; places in what is filled in stay as they are."""
        texts = {"question": self.question, "reference": "\nor: ".join(self.references), "answer": self.answer}
        return _PLACE.sub(lambda place: texts[place[1]], template)


def read_template(given: str | None) -> str:
    """Returns the template of a recipe's `judge_prompt`: the bundled one, a file's, or the text itself.

    Raises:
        UserError: a file that is not there or cannot be read, or a text without one of the places.
    """
    if given is None:
        return Path(__file__).with_name("prompt.txt").read_text(encoding="utf-8")
    is_text = "\n" in given or _PLACE.search(given) is not None
    text = given if is_text else _file_text(Path(given))
    missing = [f"{{{place}}}" for place in _PLACES if f"{{{place}}}" not in text]
    if missing:
        where = "the text" if is_text else given
        raise UserError(f"judge_prompt: {where} lacks {', '.join(missing)}; write where each is to stand.")
    return text


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"judge_prompt: {path} is no file. Name one, or write the text itself with the places {{question}}, "
            "{reference} and {answer}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge_prompt: {path} cannot be read: {error}.") from None


def read_verdict(reply: str) -> bool | None:
    """Returns what a reply says, which must be one word; None where it says something else.

    Left out are a thought (up to the last `</think>`), tags, marks and a label such as `Verdict:`.
    """
    text = re.sub(r"<[^<>]*>", " ", reply.rpartition("</think>")[2]).casefold()
    text = _LABEL.sub(" ", re.sub(r"[*`\"'_#.!\[\](){}\\]", " ", text), count=1).strip()
    if text in _RIGHT:
        return True
    return False if text in _WRONG else None
