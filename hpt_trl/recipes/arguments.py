"""The recipe keys that every stage shares, beside TRL's `ModelConfig` and the stage's own trainer config."""

from dataclasses import dataclass, field

from trl import ScriptArguments


@dataclass
class RecipeArguments(ScriptArguments):
    """Where the data comes from, what it is rewarded with and how the run is evaluated.

    The names of `ScriptArguments` (`dataset_name`, `dataset_config`, `dataset_train_split`, `dataset_test_split`)
    keep TRL's meaning; `dataset_name` is a Hub id, a local .jsonl/.json/.parquet file, a folder written by
    `save_to_disk`, `arithmetic` (built in) or `reasoning_gym:<task>`.
    """

    stage: str = field(
        default="hpt",
        metadata={"help": "Training stage: pretrain, sft, ref_tuning, rho1, reward, dpo, grpo, ppo or hpt."},
    )
    dataset_options: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of a generated dataset (`arithmetic`, `stories:<part>`, `reasoning_gym:<task>`), e.g. "
            "{size: 500}."
        },
    )
    column_mapping: dict | str | None = field(
        default=None,
        metadata={
            "help": "Column that the trainer reads -> column in the data (a dotted path reaches into a struct), e.g. "
            "{prompt: question, completion: answer, answer: reward_model.ground_truth}, {chosen: better, rejected: "
            "worse}, {text: content}."
        },
    )
    test_split_size: float | None = field(
        default=None,
        metadata={
            "help": "Rows held out for the evaluation where the data has no `dataset_test_split`: a count, or a share "
            "below 1."
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message put before every prompt (makes string prompts conversational)."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "Text around a string prompt; `{prompt}` stands for it."}
    )
    conversational: bool | None = field(
        default=None,
        metadata={
            "help": "Turn string prompts and demonstrations into user and assistant messages. By default this is done "
            "when the tokenizer has a chat template."
        },
    )
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
        metadata={"help": "Reward from which the evaluation counts a completion as solved; by default the stage's."},
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Start anew in an `output_dir` that holds another run of this package; that run's files are "
            "removed, nothing else is."
        },
    )
