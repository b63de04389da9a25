"""The recipe keys of the rewards."""

from dataclasses import dataclass, field


@dataclass
class RewardArguments:
    """What completions are scored with."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards by name (math_answer, exact_match, boxed_format, reasoning_gym, story_score) or as the "
            "dotted path of your own function, e.g. my_package.rewards.brevity."
        },
    )
    reward_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward models beside or instead of `reward_funcs`: output folders of `stage: reward` (whole "
            "models or LoRA adapters), or Hub ids of sequence classifiers with one output. `reward_weights` counts "
            "them after the functions."
        },
    )
    success_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward that decides what is solved: for the accuracy, avg@k, the gate of hpt and the "
            "sign of SRFT. By default the first function, or where there is none the first reward model."
        },
    )
