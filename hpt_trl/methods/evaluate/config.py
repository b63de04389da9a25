"""Settings of an evaluation, checked when the config is made."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from transformers import TrainingArguments

from hpt_trl.evaluation.generating import Decoding
from hpt_trl.evaluation.measuring import WIN_RATE
from hpt_trl.settings.ranges import Rule, keep_to_rules

# Of the trainer's settings, those that say something where nothing is trained.
_KEPT = (
    *("output_dir", "per_device_eval_batch_size", "seed", "bf16", "fp16", "tf32", "use_cpu", "disable_tqdm"),
    *("ddp_timeout", "ddp_backend", "log_level"),
    *("report_to", "run_name", "project", "trackio_space_id"),
)


@dataclass
class EvaluateConfig(TrainingArguments):
    """Configuration of `stage: evaluate`: what is measured, and how completions are drawn."""

    measures: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is measured: `pass@k` (one of k completions is solved, unbiased), `avg@k` (share of solved "
            "completions), `maj@k` (the most frequent answer of k completions is right), `perplexity` (of the rows' "
            "own texts), `win_rate` (how often a completion's reward is above another's). By default `pass@k` for "
            "code, `avg@k` (and above one completion `maj@k`) with other rewards, and without rewards `perplexity`."
        },
    )
    n: int = field(default=1, metadata={"help": "Completions per row."})
    k: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "The k of `pass@k` and `maj@k`, each at most `n`."}
    )
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 decodes greedily."})
    top_p: float = field(default=1.0, metadata={"help": "Draw from the likeliest tokens of this total probability."})
    top_k: int = field(default=0, metadata={"help": "Draw from so many of the likeliest tokens; 0 for all."})
    min_p: float | None = field(
        default=None, metadata={"help": "Draw from tokens with at least this share of the likeliest one's probability."}
    )
    repetition_penalty: float = field(default=1.0, metadata={"help": "1 for none."})
    stop: list[str] | None = field(
        default=None, metadata={"help": "Texts that end a completion, which is cut before the first of them."}
    )
    max_completion_length: int = field(default=512, metadata={"help": "Length limit of a completion, in tokens."})
    success_threshold: float = field(
        default=1.0, metadata={"help": "Value of `success_reward` from which a completion is solved."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward, for the weighted reward; 1 each by default."}
    )
    against: str | None = field(
        default=None,
        metadata={
            "help": "What `win_rate` compares with: `demonstrations`, the rows' own, or the output folder of another "
            "evaluation over the same rows."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that `perplexity` reads at once; longer texts are read in pieces. By default what the "
            "model takes, at most 2048."
        },
    )
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of `from_pretrained`."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code of the model's repository."})
    chat_template_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of the chat template, e.g. {enable_thinking: false}."}
    )
    use_vllm: bool = field(default=False, metadata={"help": "Generate with vLLM; see the key `vllm`."})
    vllm_mode: str = field(default="colocate", metadata={"help": "vLLM in this process.", "choices": ["colocate"]})
    vllm_gpu_memory_utilization: float = field(default=0.9, metadata={"help": "vLLM's share of the GPU's memory."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that vLLM spreads the model over."})
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Tokens of prompt and completion at most; by default what the model takes."}
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        # So many completions are drawn, of which k are taken.
        Rule(("k",), "whole numbers from 1 to `n`", least=1, most_of="n"),
    )

    def __post_init__(self):
        """Check the settings that belong together.

        Raises:
            ValueError: a value outside its range, or settings that exclude each other.
        """
        super().__post_init__()
        keep_to_rules(self)
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"`temperature` is 0 with `n` {self.n}: greedy completions of one prompt are all the same. Write e.g. "
                "`temperature: 0.8`, or `n: 1`."
            )
        if self.stop is not None and not all(self.stop):
            raise ValueError(
                f"`stop` holds an empty text ({self.stop}), which would end every completion before its first "
                "character; drop it."
            )
        if (self.against is None) == (self.measures is not None and WIN_RATE in self.measures):
            raise ValueError(
                "`against` says what `win_rate` compares with: write both, or neither. Allowed: `demonstrations`, or "
                "the output folder of another evaluation."
            )

    @property
    def decoding(self) -> Decoding:
        """How completions are drawn."""
        return Decoding(
            max_new_tokens=self.max_completion_length,
            n=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop or ()),
            seed=self.seed,
        )


# Keys of a training, which mean nothing here.
TRAINING_KEYS = frozenset(item.name for item in fields(TrainingArguments)) - frozenset(_KEPT)
