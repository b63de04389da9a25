"""The recipe keys that every stage shares, beside TRL's `ModelConfig` and the stage's own trainer config."""

from dataclasses import dataclass, field

from hpt_trl.data.arguments import DataArguments
from hpt_trl.rewards.arguments import RewardArguments


@dataclass
class RecipeArguments(RewardArguments, DataArguments):
    """The keys of data and rewards, and how the run is started and evaluated."""

    stage: str = field(
        default="hpt",
        metadata={
            "help": "Stage: pretrain, sft, ref_tuning, rho1, mtp, reward, critic, dpo, grpo, ppo, hpt, evaluate, or "
            "index."
        },
    )
    vllm: str | None = field(
        default=None,
        metadata={
            "choices": ("colocate", "server", "auto"),
            "help": "What generates the rollouts of hpt, grpo and ppo: vLLM in the training process (`colocate`), a "
            "vLLM server that you start (`server`), or `auto`: vLLM in the process where it is installed and works on "
            "the run's device, else transformers. Stands for TRL's `use_vllm` and `vllm_mode`.",
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows per optimizer step over all processes (for RL: completions). Gradient accumulation follows "
            "from it, so the same recipe gives the same result on any number of processes."
        },
    )
    eval_samples: int = field(
        default=0, metadata={"help": "Held-out rows that are answered before and after training; 0 for none."}
    )
    eval_temperature: float = field(
        default=0.0, metadata={"help": "Sampling temperature of the evaluation; 0 decodes greedily."}
    )
    eval_num_generations: int = field(
        default=1,
        metadata={"help": "Completions per held-out row (avg@k); above 1 it needs an `eval_temperature` above 0."},
    )
    eval_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Length limit of the evaluation; by default the stage's own."}
    )
    eval_success_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Value of `success_reward` from which the evaluation counts a completion as solved; by default the "
            "stage's."
        },
    )
    evaluations: list[str] | None = field(
        default=None,
        metadata={
            "help": "Recipes of `stage: evaluate` that are run with the model before and after the training, by path "
            "or bundled name; their `model_name_or_path` and `output_dir` are this run's."
        },
    )
    shipped_heads: str = field(
        default="keep",
        metadata={
            "choices": ("keep", "train", "drop"),
            "help": "Layers for future tokens that the model's checkpoint ships (DeepSeek, GLM; or a folder "
            "`future_heads`): `keep` saves them as they are beside the trained model, `train` trains them (`stage: "
            "mtp`), `drop` leaves them out.",
        },
    )
    stop_on_warnings: list[str] | None = field(
        default=None,
        metadata={
            "help": "Kinds of warnings (docs/trackers.md) at which a training ends with a checkpoint, or `[all]`; by "
            "default it is only warned."
        },
    )
    hub_overwrite: bool = field(
        default=False,
        metadata={
            "help": "With `push_to_hub`: put the model in the place of what the repository holds, also where that is "
            "no run of this package; its history stays."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Start anew in an `output_dir` that holds another run of this package; that run's files are "
            "removed, nothing else is."
        },
    )
