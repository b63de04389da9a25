"""The recipe keys of environments."""

from dataclasses import dataclass, field

from hpt_trl.settings.ranges import Rule, at_least

ENVIRONMENT_RULES: tuple[Rule, ...] = (at_least(1, "max_turns", "max_turn_length", "max_context_length", "max_images"),)
# Those that say nothing without an environment.
OF_ENVIRONMENT = (
    "environment_options",
    "search_index",
    "max_turns",
    "max_turn_length",
    "max_context_length",
    "max_images",
)


@dataclass
class EnvironmentArguments:
    """What the model acts in."""

    environment: str | None = field(
        default=None,
        metadata={
            "help": "Environment of rollouts of several turns: `vrag` (search pages, look closer, answer), `tools` "
            "(functions that the model calls), or the dotted path of your own class "
            "(hpt_trl.environments.protocol.Environment)."
        },
    )
    environment_options: dict | str | None = field(
        default=None, metadata={"help": "Options of the environment, its arguments by name."}
    )
    search_index: str | None = field(
        default=None,
        metadata={
            "help": "What `environment: vrag` searches: folder of an index (`hpt-trl index PAGES INDEX`), or the "
            "address of a search service."
        },
    )
    max_turns: int = field(default=4, metadata={"help": "Turns of the model in a rollout of an environment."})
    max_turn_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of one turn; by default all that a rollout may draw (`max_completion_length`)."},
    )
    max_context_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the model reads and draws at a time in an environment, those of images included; by "
            "default what the model takes."
        },
    )
    max_images: int | None = field(
        default=None,
        metadata={"help": "Images in the context at a time; older ones are folded away. By default all are kept."},
    )
