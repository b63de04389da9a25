"""Whether a run may be pushed where it is asked to go: network, login, name, rights, and what is there already."""

from dataclasses import dataclass
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.hub.asking import reach, said_in_a_line
from hpt_trl.hub.destination import Destination
from hpt_trl.hub.files import CARD_FILE
from hpt_trl.run_files import MARK, RECIPE_FILE

# What the Hub itself puts into a new repository, and a card that was begun by hand.
_EMPTY = {".gitattributes", CARD_FILE, "LICENSE", "LICENSE.txt", ".gitignore"}
_COMMIT_LENGTH = 40


@dataclass(frozen=True)
class Target:
    """A repository that may be written to.

    Attributes:
        name: `owner/name`.
        exists: whether it is there.
        files: what it holds on the branch that is written to.
        private: whether it is private; of a new one what was asked for.
    """

    name: str
    exists: bool
    files: tuple[str, ...]
    private: bool | None


def check_destination(wanted: Destination) -> Target:
    """Ask the Hub; nothing is made there.

    Raises:
        UserError: no network, no login, a name that is none or another's, no right to write, a public repository where
            a private one is asked for, or one that holds something else. The message starts with the recipe's key.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    api = HfApi()
    try:
        with said_in_a_line():
            reach()
            user = api.whoami()
    except UserError as error:
        raise UserError(f"push_to_hub: {error}") from None
    owner, _, name = wanted.name.rpartition("/")
    full = f"{owner or user['name']}/{name}"
    try:
        with said_in_a_line():
            validate_repo_id(full)
            _check_branch(wanted)
            _check_owner(owner or user["name"], user)
            try:
                info = api.model_info(full)
            except RepositoryNotFoundError:
                return Target(full, exists=False, files=(), private=wanted.private)
            api.auth_check(full, write=True)
            target = Target(full, exists=True, files=_files(api, full, wanted.revision), private=info.private)
            _check_contents(target, wanted)
            return target
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("hub_") else f"hub_model_id: {full}: {message}") from None


def _check_branch(wanted: Destination) -> None:
    revision = wanted.revision or ""
    if len(revision) == _COMMIT_LENGTH and all(letter in "0123456789abcdef" for letter in revision):
        raise UserError(f"hub_revision: {revision} is a commit, to which nothing can be added; write a branch.")


def _check_owner(owner: str, user: dict[str, Any]) -> None:
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError("the token may read only; make one with the right to write, and log in with it.")
    organizations = {one["name"]: one.get("roleInOrg") for one in user.get("orgs", [])}
    if owner != user["name"] and owner not in organizations:
        others = f", or to {', '.join(organizations)}" if organizations else ""
        raise UserError(
            f"you are {user['name']} on the Hub and can push to {user['name']}/…{others}, not to {owner}/…."
        )
    if organizations.get(owner) == "read":
        raise UserError(f"you may only read in the organization {owner}; ask for the right to write.")


def _files(api: Any, name: str, revision: str | None) -> tuple[str, ...]:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return tuple(api.list_repo_files(name, revision=revision))
    except RevisionNotFoundError:
        # A new branch begins with what `main` holds.
        return tuple(api.list_repo_files(name))


def _check_contents(target: Target, wanted: Destination) -> None:
    if wanted.private and not target.private:
        raise UserError(
            f"hub_private_repo: true, but {target.name} is there and public. Make it private in its settings on the "
            "Hub, or name another `hub_model_id`."
        )
    if wanted.overwrite or not set(target.files) - _EMPTY or _is_run(target, wanted.revision):
        return
    shown = ", ".join(sorted(set(target.files) - _EMPTY)[:3])
    raise UserError(
        f"it is there and holds something that is no run of hpt-trl ({shown}, …). Name another `hub_model_id`, or "
        "write `hub_overwrite: true` (`--overwrite true` of `hpt-trl push`) to put this model in its place; its "
        "history stays."
    )


def _is_run(target: Target, revision: str | None) -> bool:
    """Whether a repository's recipe is one that this package wrote."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RevisionNotFoundError

    if RECIPE_FILE not in target.files:
        return False
    try:
        file = hf_hub_download(target.name, RECIPE_FILE, revision=revision)
    except RevisionNotFoundError:
        file = hf_hub_download(target.name, RECIPE_FILE)
    with open(file, encoding="utf-8", errors="replace") as opened:
        return opened.readline().startswith(MARK)
