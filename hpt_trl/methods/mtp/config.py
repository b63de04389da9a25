"""Settings of weighted multi-token prediction, checked when the config is made."""

from dataclasses import dataclass, field

from trl import SFTConfig

from hpt_trl.methods.mtp.schedule import CURRICULA, head_weights
from hpt_trl.models.future_heads.heads import COPIES, KINDS, MOST_TOKENS

UNIFORM = "uniform"
WEIGHTINGS = (UNIFORM, "verifiable", "rho1", "random_matched", "shuffled")


@dataclass
class WeightedMTPConfig(SFTConfig):
    """Configuration of `WeightedMTPTrainer`: TRL's SFTConfig, how far ahead is predicted, and what each token counts.

    Multi-token prediction after arXiv 2404.19737. `docs/mtp.md` says which settings are for what.

    Raises:
        ValueError: a value outside its range, or settings that exclude each other.
    """

    n_future_tokens: int = field(
        default=4,
        metadata={
            "help": f"How many tokens ahead are predicted, 1 to {MOST_TOKENS}: the next one by the model's last layer, "
            "the others by a head each. 1 is SFT."
        },
    )
    head_weights: list[float] | str = field(
        default="uniform",
        metadata={
            "help": "What each head's mean loss counts in the sum: a list of `n_future_tokens` numbers, the next "
            "token's first; `uniform`, 1/n each; or `decay:B`, in proportion to B^(k-1), with the sum 1."
        },
    )
    head_init: str = field(
        default=COPIES,
        metadata={
            "help": "What the heads after the first are: `copy_last_layer`, decoder layers that read the trunk as the "
            "last one does and begin with its weights; `zero_residual`, a matrix each on the last layer's output, zero "
            "at first (cheap, and weaker). Heads that lie beside the model are trained on.",
            "choices": list(KINDS),
        },
    )
    detach_trunk: bool = field(
        default=False,
        metadata={
            "help": "The heads after the first learn by themselves: their losses have no gradient for trunk, norm and "
            "output embeddings, and the next-token model is trained as by SFT."
        },
    )
    head_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps at the beginning in which `detach_trunk` holds: new heads start far from their "
            "tokens, and would disturb the trunk."
        },
    )
    head_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the heads after the first; by default `learning_rate`."},
    )
    curriculum: str = field(
        default="none",
        metadata={
            "help": "How many heads are trained along the run: `none`, all; `forward`, from one to all of them in "
            "equal parts of the run (arXiv 2505.22757); `reverse`, from all to one.",
            "choices": list(CURRICULA),
        },
    )
    checkpoint_heads: bool = field(
        default=False,
        metadata={
            "help": "Compute the heads' activations again in the backward pass instead of keeping them; with "
            "`gradient_checkpointing` their layers do so in any case."
        },
    )
    weighting: str = field(
        default=UNIFORM,
        metadata={
            "help": "What each token counts, whichever head predicts it: `uniform`, all the same.",
            "choices": list(WEIGHTINGS),
        },
    )

    def __post_init__(self):
        """Check the settings that belong together.

        Raises:
            ValueError: a value outside its range, or settings that exclude each other.
        """
        if self.curriculum != "none" and self.ddp_find_unused_parameters is None:
            # Heads that wait for their part of the run have no gradient.
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        if not 1 <= self.n_future_tokens <= MOST_TOKENS:
            raise ValueError(f"`n_future_tokens` is {self.n_future_tokens}; allowed: 1 to {MOST_TOKENS}.")
        if self.max_length is not None and self.n_future_tokens >= self.max_length:
            raise ValueError(
                f"`n_future_tokens` is {self.n_future_tokens}, but rows are cut to {self.max_length} tokens "
                "(`max_length`): the last head would have nothing to predict; allowed: below `max_length`."
            )
        for name, allowed in (("head_init", KINDS), ("curriculum", CURRICULA), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed: {', '.join(allowed)}.")
        head_weights(self.head_weights, self.n_future_tokens)
        if self.head_warmup_steps < 0:
            raise ValueError(f"`head_warmup_steps` is {self.head_warmup_steps}; allowed: 0 or more.")
        if self.head_learning_rate is not None and self.head_learning_rate <= 0:
            raise ValueError(f"`head_learning_rate` is {self.head_learning_rate}; allowed: above 0.")
        if self.loss_type != "nll":
            raise ValueError(
                f"`loss_type` is {self.loss_type}; allowed: nll. The heads' losses are weighted, which another "
                "transform of their likelihood would undo."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}; allowed: 0. Smoothing needs the logits of "
                "all tokens, which are never held here."
            )

    @property
    def looks_ahead(self) -> bool:
        """Whether there is anything that SFT does not do."""
        return self.n_future_tokens > 1 or self.weighting != UNIFORM
