"""Questions to the Hub, and in one line what is wrong where it does not do what it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpt_trl.errors import UserError
from hpt_trl.settings.secrets import hidden

# Seconds that the Hub has to answer at all; the client itself would wait for ever.
_PATIENCE = 15


@contextmanager
def said_in_a_line() -> Iterator[None]:
    """While open, what the Hub's client raises becomes a message of one line, without the token.

    Raises:
        UserError: not logged in, no rights, no network, or whatever else the Hub said.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(
            "you are not logged in to the Hub. Log in with `hf auth login`, or set HF_TOKEN to a token with the right "
            "to write (https://huggingface.co/settings/tokens)."
        ) from None
    except OfflineModeIsEnabled:
        raise UserError(
            "the network was not tried, since HF_HUB_OFFLINE is set; unset it where there is one."
        ) from None
    except HFValidationError as error:
        raise UserError(_line(error)) from None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # What they hold, also the request with its token, would stand in a traceback's chain.
        raise UserError(_of_http(error)) from None


def reach() -> None:
    """See that the Hub answers at all.

    Raises:
        What the client raises: see `said_in_a_line`.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


def _of_http(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # What went wrong with a file stands behind the sentence that names the file.
    while not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return (
            f"{constants.ENDPOINT} did not answer as it should: {type(error).__name__}: {_line(error)}. Once it can be "
            "reached, the same command goes on; nothing is lost."
        )
    status, said = error.response.status_code, hidden(error.server_message or "") or _line(error)
    if status == 401:
        return (
            f"the Hub does not take the token (401: {said}). Log in anew with `hf auth login`, or set HF_TOKEN to a "
            "token that is valid."
        )
    if status == 403:
        return f"the token has no right to do this (403: {said}). Use one with the right to write there."
    return f"the Hub answered {status}: {said}"


def _line(error: Exception) -> str:
    lines = hidden(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
