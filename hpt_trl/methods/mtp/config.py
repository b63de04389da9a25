"""Settings of weighted multi-token prediction, checked when the config is made."""

from dataclasses import dataclass, field
from typing import ClassVar

from hpt_trl.methods.mtp.schedule import CURRICULA, head_weights
from hpt_trl.models.future_heads.chained import SHIPPED
from hpt_trl.models.future_heads.heads import COPIES, KINDS, MOST_TOKENS
from hpt_trl.settings.ranges import Rule, above, at_least, keep_to_rules, one_of
from hpt_trl.token_scores.head_selection import FIRST_HEADS
from hpt_trl.token_scores.selection_config import SelectionConfig
from hpt_trl.token_scores.weighting_config import WEIGHTINGS as TOKEN_WEIGHTINGS
from hpt_trl.token_scores.weighting_config import TokenWeightingConfig

UNIFORM, RHO1 = "uniform", "rho1"
INITS = (*KINDS, SHIPPED)
WEIGHTINGS = (*TOKEN_WEIGHTINGS, RHO1)


@dataclass
class WeightedMTPConfig(TokenWeightingConfig, SelectionConfig):
    """Configuration of `WeightedMTPTrainer`: TRL's SFTConfig, how far ahead is predicted, and what each token counts.

    Multi-token prediction after arXiv 2404.19737. `docs/mtp.md` says which settings are for what.

    Raises:
        ValueError: a value outside its range, or settings that exclude each other.
    """

    weightings: ClassVar[tuple[str, ...]] = WEIGHTINGS
    selection_scopes: ClassVar[tuple[str, ...]] = ("sequence", "micro_batch")

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
            "at first (cheap, and weaker); `shipped`, the layers that the checkpoint brings (DeepSeek, GLM). Heads in "
            "a folder `future_heads` beside the model are trained on.",
            "choices": list(INITS),
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
            "help": "What each token counts, whichever head predicts it: `uniform`, all the same; `verifiable`, by the "
            "advantage that a value model gives it (`value_model_name_or_path`); `rho1`, those whose loss exceeds a "
            "reference model's most, by head (`reference_model_name_or_path`, `select_ratio`). Controls of the same "
            "mean: `shuffled`, the weights of `verifiable` in another order within their sequence; `batch_permuted`, "
            "within all sequences of a process's step; `random_matched`, drawn with a mean and a spread after the "
            "clip; `inverted`, by the negative advantage; `position`, the moving "
            "average of `verifiable` at a token's place.",
            "choices": list(WEIGHTINGS),
        },
    )
    selection_first_head: str = field(
        default="full",
        metadata={
            "help": "`rho1`: `full`, the next token is learnt of all tokens, so that next-token prediction stays what "
            "it is; `selected`, of the selected ones as by the other heads.",
            "choices": list(FIRST_HEADS),
        },
    )
    selection_anchored: bool = field(
        default=False,
        metadata={"help": "`rho1`: all heads learn the tokens that the first one would select, not each its own."},
    )

    # Set by a recipe's `shipped_heads: drop`: heads that lie beside the model are left alone, new ones are trained.
    begins_anew: bool = field(default=False, init=False)

    RULES: ClassVar[tuple[Rule, ...]] = (
        # In a row as short as that the last head would have nothing to predict.
        Rule(
            ("n_future_tokens",),
            f"1 to {MOST_TOKENS}, below `max_length`",
            least=1,
            most=MOST_TOKENS,
            below_of="max_length",
        ),
        one_of("head_init", *INITS),
        one_of("curriculum", *CURRICULA),
        one_of("selection_first_head", *FIRST_HEADS),
        at_least(0, "head_warmup_steps"),
        above(0, "head_learning_rate"),
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
        keep_to_rules(self)
        if self.n_future_tokens > 1 and self.packing and self.packing_strategy == "wrapped":
            raise ValueError(
                "`packing_strategy` is 'wrapped', whose rows hold several documents without their borders: heads would "
                "predict across them; allowed with `n_future_tokens` above 1: bfd, bfd_split."
            )
        head_weights(self.head_weights, self.n_future_tokens)
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
        if self.weighting == RHO1 and self.n_future_tokens == 1 and self.selection_first_head == "full":
            raise ValueError(
                "`selection_first_head` is full, and there is no head but the first (`n_future_tokens: 1`): nothing "
                "would be selected. Write selection_first_head: selected."
            )
        if self.needs_reference and self.reference_model_name_or_path is None:
            raise ValueError(
                "`reference_model_name_or_path` is missing: `weighting: rho1` compares tokens with a reference model. "
                "Name one, e.g. the output of `stage: ref_tuning`."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the heads' losses are compared with a reference model's, at any step."""
        return self.weighting == RHO1 and not self.selects_all

    @property
    def looks_ahead(self) -> bool:
        """Whether there is anything that SFT does not do."""
        return self.n_future_tokens > 1 or self.weighting != UNIFORM
