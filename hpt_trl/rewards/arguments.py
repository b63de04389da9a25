"""The recipe keys of the rewards."""

from dataclasses import dataclass, field

from hpt_trl.settings.ranges import Rule, above, at_least

REWARD_RULES: tuple[Rule, ...] = (
    above(0, "code_timeout", "code_batch_timeout", "judge_timeout"),
    at_least(64, "code_memory"),
    at_least(1, "code_workers", "judge_concurrency"),
    at_least(0, "judge_retries"),
)


@dataclass
class RewardArguments:
    """What completions are scored with."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards by name (math_answer, exact_match, boxed_format, reasoning_gym, story_score, "
            "code_tests, all_code_tests; of episodes of the retrieval environment: answer_match, answer_exact, "
            "judged_answer, action_format, page_ndcg, page_recall, crop_overlap) or as the "
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
    code_timeout: float = field(
        default=10.0,
        metadata={
            "help": "Seconds of processor time that a completion's program may take, for code_tests and "
            "all_code_tests; of a script with inputs and outputs, for each input."
        },
    )
    code_memory: int = field(default=1024, metadata={"help": "Memory of a completion's program in MiB."})
    code_batch_timeout: float | None = field(
        default=600.0,
        metadata={
            "help": "Seconds that all programs of one batch of completions may take together. Those that are not begun "
            "by then have no reward; null for no limit."
        },
    )
    code_workers: int | None = field(
        default=None,
        metadata={
            "help": "Programs that run at a time in each process of the training; by default its share of the cores."
        },
    )
    run_untrusted_code_without_a_sandbox: bool = field(
        default=False,
        metadata={
            "help": "Where no sandbox can be set up, run the programs of the model without one: they can then read, "
            "write, delete and send whatever the training's user can. For containers that are thrown away after."
        },
    )
    judge_url: str | None = field(
        default=None,
        metadata={
            "help": "Address of the judge of judged_answer, an OpenAI-compatible service, down to what stands before "
            "`/chat/completions`: e.g. http://localhost:8000/v1."
        },
    )
    judge_model: str | None = field(default=None, metadata={"help": "Model that the judge's service is asked for."})
    judge_api_key_env: str | None = field(
        default=None,
        metadata={
            "help": "Name of the environment variable that holds the key for the judge's service, e.g. JUDGE_API_KEY; "
            "never the key itself. By default no key is sent."
        },
    )
    judge_prompt: str | None = field(
        default=None,
        metadata={
            "help": "What the judge is asked: a text, or a file that holds it, with the places {question}, {reference} "
            "and {answer}. By default the one in docs/vrag.md."
        },
    )
    judge_timeout: float = field(default=60.0, metadata={"help": "Seconds that one question to the judge may take."})
    judge_retries: int = field(
        default=3, metadata={"help": "How often a question that failed is asked again before it has no reward."}
    )
    judge_concurrency: int = field(
        default=8, metadata={"help": "Questions to the judge at a time in each process of the training."}
    )
    judge_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the verdicts for later runs; by default they are kept in memory for this run."
        },
    )
