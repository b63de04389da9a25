"""A vLLM server that has to be there before a run, and what is said when it is not, or is lost."""

import shlex
import time
from typing import TYPE_CHECKING

from hpt_trl.errors import UserError
from hpt_trl.http_requests import cause

if TYPE_CHECKING:
    import requests

# Seconds for a connection, and for the answer to a question that costs the server nothing.
CONNECT_TIMEOUT, PROBE_TIMEOUT = 5.0, 10.0


def server_command(model: str, address: str) -> str:
    """Returns the command that starts a server for a run: vLLM's own, with what TRL's client asks of it."""
    port = address.rpartition(":")[2].strip("/")
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(model)} --port {port if port.isdigit() else 8000} "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1 """
        "--enable-scale-out"
    )


def await_server(address: str, seconds: float, model: str) -> None:
    """Waits until a vLLM server answers, and looks whether weights can be sent to it.

    Args:
        address: its base URL.
        seconds: how long to wait; one question may last `PROBE_TIMEOUT` longer.
        model: for the command in the message.

    Raises:
        UserError: it is not there, is something else, or was started without what a trainer needs; the message has
            the address, what was tried and the command that starts one.
    """
    import requests

    started, asked = time.monotonic(), 0
    while True:
        asked += 1
        try:
            health = requests.get(f"{address}/health", timeout=(CONNECT_TIMEOUT, PROBE_TIMEOUT))
            if health.status_code == 200:
                break
            problem = f"it answers {health.status_code} to /health"
        except requests.RequestException as error:
            problem = cause(error)
        waited = time.monotonic() - started
        if waited + 1.0 > seconds:
            raise UserError(
                f"the vLLM server at {address} is not there: asked {asked} times for /health in {waited:.0f} s, "
                f"{problem}. Start one, and give it time to load with `vllm_server_timeout` (now {seconds:g} s):\n"
                f"  {server_command(model, address)}"
            )
        time.sleep(1.0)
    try:
        told = requests.get(
            f"{address}/server_info", params={"config_format": "json"}, timeout=(CONNECT_TIMEOUT, PROBE_TIMEOUT)
        )
    except requests.RequestException as error:
        raise lost(address, model, f"/server_info: {cause(error)}") from error
    missing = _missing(told)
    if missing:
        raise UserError(
            f"the server at {address} cannot be trained with: {missing}. Start it anew:\n"
            f"  {server_command(model, address)}"
        )


def _missing(told: "requests.Response") -> str | None:
    """What a server lacks that a trainer needs, by its answer to /server_info."""
    if told.status_code != 200:
        return f"it answers {told.status_code} to /server_info, as a vLLM server does without VLLM_SERVER_DEV_MODE=1"
    try:
        config = told.json()["vllm_config"]
    except (ValueError, KeyError, TypeError):
        return "it says nothing of vLLM at /server_info"
    if config.get("weight_transfer_config") is None:
        return "it has no weight-transfer engine (`--weight-transfer-config`)"
    return None


def lost(address: str, model: str, problem: str) -> UserError:
    """Returns (does not raise) the error about a server that failed while it was in use."""
    return UserError(
        f"the vLLM server at {address} failed during the run ({problem}). The last checkpoint stays. Start the server "
        f"anew:\n  {server_command(model, address)}\nand go on with `--resume_from_checkpoint true`."
    )
