"""The push: one commit with all that a run has for others, made only when everything is up."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.hub.asking import said_in_a_line
from hpt_trl.hub.card import card_for
from hpt_trl.hub.checks import check_destination
from hpt_trl.hub.destination import Destination
from hpt_trl.hub.files import Bundle, bundle_of, stale
from hpt_trl.hub.origin import note_push
from hpt_trl.hub.run_folder import read_run_folder, without_results_refused
from hpt_trl.models.whole_files import refuse_damaged_model, tell_changed_recipe


@dataclass(frozen=True)
class Pushed:
    """A push that was made.

    Attributes:
        name: of the repository.
        url: its address.
        commit: that holds the run.
        files, size: what the run has there, and its bytes.
        removed: what a former model had left there.
    """

    name: str
    url: str
    commit: str
    files: int
    size: int
    removed: list[str]


def push(folder: str | Path, wanted: Destination, message: str | None = None) -> Pushed:
    """Push a finished run; what is up already is not sent again.

    Args:
        message: of the commit.

    Raises:
        UserError: the folder holds no finished run, the destination is refused, or the Hub does not take it. Nothing
            in the folder is changed by that, and the same call goes on where it stopped.
    """
    from huggingface_hub import HfApi

    run = without_results_refused(read_run_folder(folder))
    refuse_damaged_model(run.folder)
    tell_changed_recipe(run.folder)
    target = check_destination(wanted)
    bundle = bundle_of(run, target.name, card_for(run, target.name, wanted.revision, ask=True))
    old = stale(list(target.files), bundle)
    api = HfApi()
    with said_in_a_line():
        api.create_repo(target.name, private=wanted.private, exist_ok=True)
        if wanted.revision is not None:
            api.create_branch(target.name, branch=wanted.revision, exist_ok=True)
        commit = api.create_commit(
            target.name,
            _operations(bundle, old),
            commit_message=message or f"{run.stage} by hpt-trl",
            revision=wanted.revision,
        )
    note_push(run.folder, target.name, wanted.revision, commit.oid)
    url = f"{api.endpoint}/{target.name}" + ("" if wanted.revision is None else f"/tree/{wanted.revision}")
    return Pushed(target.name, url, commit.oid, len(bundle.names), bundle.size, old)


def told(pushed: Pushed) -> str:
    """A push for reading."""
    gone = f"; {len(pushed.removed)} files of a former model are gone there" if pushed.removed else ""
    return f"Pushed: {pushed.url} ({pushed.files} files, {pushed.size / 2**20:.1f} MiB{gone})"


def not_pushed(folder: str | Path, wanted: Destination, error: UserError) -> str:
    """What to say of a push that failed."""
    why = str(error).removeprefix("push_to_hub: ")
    return (
        f"the run is finished and nothing of it is lost, but it was not pushed: {why} Then push it: "
        f"{push_command(folder, wanted)}"
    )


def push_command(folder: str | Path, wanted: Destination) -> str:
    """The command that makes a push again."""
    return shlex.join(["hpt-trl", "push", str(folder), *wanted.words()])


def _operations(bundle: Bundle, old: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    contents: dict[str, Any] = {**bundle.files, **{name: text.encode() for name, text in bundle.texts.items()}}
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents[name]) for name in sorted(contents)),
        *(CommitOperationDelete(path_in_repo=name) for name in old),
    ]
