"""Questions to the judge's service, several at a time."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hpt_trl.http_requests import Client, ServiceError
from hpt_trl.rewards.judge.question import read_verdict
from hpt_trl.rewards.judge.settings import JudgeSettings, read_key

PATH = "/chat/completions"
_SHOWN = 200
# Characters of a key's beginning from which on it is left out.
_TELLING = 6


@dataclass(frozen=True)
class Reply:
    """What became of a question: the judge's verdict and its words, or the problem in place of both."""

    right: bool | None = None
    text: str = ""
    problem: str = ""


class Judge:
    """Asks a model behind an OpenAI-compatible service. The key is read from the environment when it is made."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._key = read_key(settings.key_variable)
        headers = None if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._client = Client(settings.url, timeout=settings.timeout, retries=settings.retries, headers=headers)

    def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """Returns the reply to each prompt.

        Where as many questions as are asked at a time have failed and none was answered, the rest is not asked: a
        judge that is down costs one round of time-outs, and not one for each question.
        """
        lock = threading.Lock()
        counts = {"answered": 0, "failed": 0}

        def one(prompt: str) -> Reply:
            with lock:
                if not counts["answered"] and counts["failed"] >= self._settings.concurrency:
                    return Reply(problem="not asked, for those before it had failed")
            reply = self._ask(prompt)
            with lock:
                counts["failed" if reply.right is None else "answered"] += 1
            return reply

        with ThreadPoolExecutor(max_workers=self._settings.concurrency, thread_name_prefix="judge") as pool:
            return list(pool.map(one, prompts))

    def _ask(self, prompt: str) -> Reply:
        question = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        try:
            answer = self._client.post(PATH, question)
        except ServiceError as error:
            return Reply(problem=self._without_key(str(error).rstrip(".")))
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            return Reply(problem=self._without_key(f"the answer has no message: {str(answer)[:_SHOWN]}"))
        right = read_verdict(text)
        text = self._without_key(text)
        if right is None:
            return Reply(problem=f"the reply is no verdict (correct or incorrect): {text[:_SHOWN]!r}")
        return Reply(right=right, text=text)

    def _without_key(self, text: str) -> str:
        """Services repeat the key in what they say of a wrong one, and messages are cut anywhere."""
        if self._key is None:
            return text
        for length in (len(self._key), *range(len(self._key) - 1, _TELLING - 1, -1)):
            text = text.replace(self._key[:length], "…")
        return text
