"""The environment that a recipe names: made, and held against its settings before weights are loaded."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.arguments import OF_ENVIRONMENT, EnvironmentArguments
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.faults import raised
from hpt_trl.environments.protocol import Environment
from hpt_trl.environments.tools import ToolEnvironment
from hpt_trl.errors import Collector, UserError
from hpt_trl.methods.vrag.building import check_vrag, vrag_environments
from hpt_trl.methods.vrag.environment import PageSearch
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.rewards.columns import FACTS
from hpt_trl.rewards.functions import REWARDS
from hpt_trl.settings.imported import imported
from hpt_trl.settings.values import did_you_mean


@dataclass
class ActingArguments(EnvironmentArguments, RecipeArguments):
    """The recipe's keys, and what the model acts in."""


VRAG, TOOLS = "vrag", "tools"
_METHODS = ("prompt", "start", "act", "unseen", "facts", "measures")


def acting_arguments(recipe: Recipe) -> ActingArguments:
    """The keys of a recipe whose stage takes an environment."""
    return cast(ActingArguments, recipe.arguments)


def context_limit(recipe: Recipe) -> int | None:
    """Tokens that a context of a recipe's environment may have; None without an environment, or without a limit."""
    return None if recipe.environment is None else acting_arguments(recipe).max_context_length


def environments_of(arguments: EnvironmentArguments) -> TurnEnvironments | None:
    """The environments of a recipe; None where it names none.

    Raises:
        UserError: they cannot be made; the message names the key.
    """
    if arguments.environment is None:
        return None
    limits = {
        name: getattr(arguments, name) for name in ("max_turns", "max_turn_length", "max_context_length", "max_images")
    }
    options = _options(arguments)
    if arguments.environment == VRAG:
        return vrag_environments(check_vrag(options, arguments.search_index), **limits)
    make: Any = ToolEnvironment if arguments.environment == TOOLS else _imported(arguments.environment, "environment")
    if arguments.search_index is not None:
        raise UserError(f"search_index: `environment: {VRAG}` alone reads it; drop it, or write it as an option.")
    _check_options(make, arguments.environment, options)
    if arguments.environment == TOOLS:
        options = {"functions": _functions(options["functions"])}

    def made() -> Environment:
        try:
            return make(**options)
        except UserError:
            raise
        # What another's environment raises is another's choice.
        except (Exception, SystemExit) as error:
            raise UserError(f"environment: {arguments.environment} {raised(error)}") from error

    return TurnEnvironments(made, **limits)


def _functions(names: Any) -> list[Any]:
    if not isinstance(names, list) or not all(isinstance(name, str) and "." in name for name in names) or not names:
        raise UserError(
            f"environment_options: `functions: {names}`; allowed: a list of dotted paths, e.g. "
            "[my_package.tools.weather]."
        )
    return [_imported(name, "environment_options") for name in names]


def _options(arguments: EnvironmentArguments) -> dict[str, Any]:
    options = arguments.environment_options or {}
    if not isinstance(options, dict):
        raise UserError(f"environment_options: {options!r} is no mapping; write e.g. {{max_pixels: 401408}}.")
    return options


def check_environment(recipe: Recipe) -> None:
    """Refuse an environment that cannot be made, and keys that say nothing without one.

    Raises:
        UserError: every such key.
    """
    arguments, mistakes = acting_arguments(recipe), Collector()
    if arguments.environment is None:
        for key in OF_ENVIRONMENT:
            if recipe.raw.get(key) is not None:
                mistakes.note(recipe.error(key, "it says nothing without `environment`; name one, or drop the line."))
        mistakes.settle()
        return
    if recipe.raw.get("max_length") is not None:
        said = "in an environment `max_context_length` bounds what is read; write that key."
        mistakes.note(recipe.error("max_length", said))
    try:
        if arguments.environment == VRAG:
            check_vrag(_options(arguments), arguments.search_index)
        else:
            environments = environments_of(arguments)
            assert environments is not None
            _check_made(environments)
    except UserError as error:
        mistakes.note(_placed(recipe, error))
    mistakes.settle()


def _placed(recipe: Recipe, error: UserError) -> UserError:
    """A complaint that begins with a key, with the key's place."""
    key, _, message = str(error).partition(": ")
    return recipe.error(key, message) if key in recipe.keys else recipe.error("environment", str(error))


def acting_of(recipe: Recipe, encoder: Encoder, *, drawn: int, positions: int | None) -> Acting | None:
    """How a recipe's rollouts are begun; None without an environment.

    Raises:
        UserError: the environment cannot be made, as its index cannot be opened, or its actions are none that the
            model's chat template writes.
    """
    try:
        environments = environments_of(acting_arguments(recipe))
        return None if environments is None else Acting(environments, encoder, drawn=drawn, positions=positions)
    except UserError as error:
        raise _placed(recipe, error) from error


def environment_conditions(recipe: Recipe, acting: Acting | None) -> dict[str, Any]:
    """What rollouts depend on in an environment, for an evaluation that goes on; nothing without one."""
    if acting is None:
        return {}
    options = acting_arguments(recipe).environment_options
    environment = acting.environments.make()
    engine = environment.engine.digest if isinstance(environment, PageSearch) else None
    return {
        "environment": acting_arguments(recipe).environment,
        "environment_options": options,
        "search_engine": engine,
        **{f"limit_{name}": value for name, value in asdict(acting.limits).items()},
    }


def check_rewards(recipe: Recipe, columns: Sequence[str]) -> None:
    """Refuse rewards that read what an environment tells, where there is none and the data does not tell it.

    Raises:
        UserError: the first such reward.
    """
    for name in recipe.arguments.reward_funcs or []:
        read = inspect.signature(REWARDS[name]).parameters if name in REWARDS else ()
        missing = [fact for fact in FACTS if fact in read and fact not in columns]
        if missing:
            raise recipe.error(
                "reward_funcs",
                f"`{name}` reads `{missing[0]}`, which an environment tells of its rollouts; name `environment`.",
            )


def _check_made(environments: TurnEnvironments) -> None:
    environment = environments.make()
    kind = type(environment).__name__
    missing = [name for name in _METHODS if not callable(getattr(environment, name, None))]
    if missing:
        raise UserError(f"environment: {kind} has no method `{missing[0]}`; see hpt_trl.environments.protocol.")
    if not isinstance(getattr(environment, "tools", None), list | tuple):
        raise UserError(f"environment: {kind} has no list `tools`; an empty one names no tools.")


def _check_options(make: Any, name: str, options: dict[str, Any]) -> None:
    try:
        parameters = dict(inspect.signature(make).parameters)
    except ValueError as error:
        raise UserError(f"environment: {name} does not say what arguments it takes; name a class of Python.") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in options:
        if key not in parameters:
            raise UserError(
                f"environment_options: {name} takes no `{key}`.{did_you_mean(key, parameters)} It takes: "
                f"{', '.join(parameters) or 'nothing'}."
            )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_POSITIONAL
        and key not in options
    ]
    if missing:
        raise UserError(f"environment_options: {name} needs `{missing[0]}`.")


def _imported(name: str, key: str) -> Any:
    if "." not in name.strip("."):
        raise UserError(
            f"environment: there is no environment `{name}`.{did_you_mean(name, (VRAG, TOOLS))} Write `{VRAG}`, "
            f"`{TOOLS}`, or the dotted path of your own, e.g. my_package.environments.Shop."
        )
    found = imported(name, key)
    if not callable(found):
        raise UserError(f"{key}: `{name}` is no class or function.")
    return found
