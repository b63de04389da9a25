"""The recipe's keys of the judge, checked before anything is loaded; the service is not called for it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hpt_trl.errors import UserError
from hpt_trl.rewards.arguments import RewardArguments
from hpt_trl.rewards.judge.question import read_template

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The usual way to write one; whatever else is written there may be a key, and is not repeated.
_USUAL_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(frozen=True)
class JudgeSettings:
    """How answers are judged; see `RewardArguments`. The key is not among them: it stays in the environment.

    Attributes:
        template: Text with the places of `Question.prompt`.
        key_variable: Environment variable that holds the service's key; None for none.
        cache: Folder of the verdicts; None keeps them in memory.
    """

    url: str
    model: str
    template: str
    key_variable: str | None = None
    timeout: float = 60.0
    retries: int = 3
    concurrency: int = 8
    cache: Path | None = None

    @classmethod
    def of(cls, arguments: RewardArguments) -> "JudgeSettings":
        """Returns the settings of a recipe.

        Raises:
            UserError: no `judge_url` or `judge_model`, a value that cannot be used, or no key in the environment.
        """
        url, model = arguments.judge_url, arguments.judge_model
        wanted = {"judge_url": (url, "http://localhost:8000/v1"), "judge_model": (model, "the name it serves")}
        for name, (value, example) in wanted.items():
            if not value:
                raise UserError(
                    f"reward_funcs: `judged_answer` asks a judge, but the recipe has no `{name}`. Write {name}: "
                    f"{example}, or take `answer_match`, which needs none."
                )
        cache = None if arguments.judge_cache is None else Path(arguments.judge_cache)
        if cache is not None and cache.exists() and not cache.is_dir():
            raise UserError(f"judge_cache: {cache} is a file; name a folder.")
        settings = cls(
            url=_checked_url(str(url)),
            model=str(model),
            template=read_template(arguments.judge_prompt),
            key_variable=arguments.judge_api_key_env,
            timeout=arguments.judge_timeout,
            retries=arguments.judge_retries,
            concurrency=arguments.judge_concurrency,
            cache=cache,
        )
        read_key(settings.key_variable)
        return settings


def read_key(variable: str | None) -> str | None:
    """Returns the key that an environment variable holds; None for no variable.

    Raises:
        UserError: it is not set, its name is none, or the key cannot be sent. The key is never part of the message.
    """
    if variable is None:
        return None
    shown = f"`{variable}`" if _USUAL_NAME.fullmatch(variable) else "what is written there"
    if not _NAME.fullmatch(variable):
        raise UserError(
            "judge_api_key_env: what is written there is no name of an environment variable. Write the name, e.g. "
            "JUDGE_API_KEY, and set the variable to the key; a key itself must not stand in a recipe."
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"judge_api_key_env: {shown} is not set in the environment; export it, or drop the line where the judge "
            "needs no key."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"judge_api_key_env: {shown} holds characters that no header may hold; set it to the bare key.")
    return key


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018
    except ValueError as error:
        raise UserError(f"judge_url: it is no address ({error}); write e.g. http://localhost:8000/v1.") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "judge_url: write the bare address, without user, password, `?` or `#`; a key goes into the environment "
            "variable that `judge_api_key_env` names."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"judge_url: {url} is no address; write e.g. http://localhost:8000/v1.")
    return url.rstrip("/").removesuffix("/chat/completions")
