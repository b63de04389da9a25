"""The numbers that the memory of a process depends on."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Sharding:
    """What a profile leaves of each part to a process, and what it adds.

    Attributes:
        weights: processes that the weights are spread over.
        gradients: the same for gradients.
        optimizer: the same for the optimizer's states.
        gathered: weights that are whole while they are used: none (they are never spread), `layers` (this one and the
            next, embeddings and head), `window` (the last 10^9 elements, ZeRO-3), or `all`.
        gathered_bytes: bytes of a gathered weight.
        gathers_to_generate: all of them are whole while completions are generated (ZeRO-3).
        gradient_bytes: bytes of a trained parameter's gradient; None for the parameter's own.
        master_weights: the optimizer keeps float32 copies of what it trains (DeepSpeed).
        bucket: elements of the buffer in which gradients are reduced, None for as many as are trained (DDP), 0 without.
        bucket_stays: it is there between backward passes, too (ZeRO-1 and ZeRO-2 allocate it for each).
        offload_weights: weights lie in the CPU's memory until they are used.
        offload_optimizer: so do the optimizer's states, master weights and gradients.
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    gathered: str = ""
    gathered_bytes: float = 0.0
    gathers_to_generate: bool = False
    gradient_bytes: float | None = None
    master_weights: bool = False
    bucket: int | None = 0
    bucket_stays: bool = True
    offload_weights: bool = False
    offload_optimizer: bool = False

    @property
    def by_module(self) -> bool:
        """Weights are spread module by module (FSDP), not each by itself (ZeRO-3)."""
        return self.gathered in ("layers", "all")


@dataclass(frozen=True)
class FurtherHeads:
    """Heads for future tokens beside the model's own (multi-token prediction), trained whole.

    Attributes:
        count: how many.
        parameters: of all of them.
        layers: they are decoder layers, and not a matrix each.
        kept: their activations are kept for the backward pass.
    """

    count: int = 0
    parameters: int = 0
    layers: bool = True
    kept: bool = True


class Batch(NamedTuple):
    """Sequences of one forward and backward pass.

    Attributes:
        rows: how many.
        prompt_length: tokens of the longest.
        completion_length: tokens of the longest.
        prompt_tokens: of all of them, where rows are not padded and one that they share counts once; None: each is as
            wide as the longest.
        completion_tokens: the same of completions.
    """

    rows: int
    prompt_length: int
    completion_length: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt_length + self.completion_length

    @property
    def tokens(self) -> int:
        """Positions that are computed."""
        prompts = self.rows * self.prompt_length if self.prompt_tokens is None else self.prompt_tokens
        return prompts + self.completed

    @property
    def completed(self) -> int:
        """Those of completions."""
        return self.rows * self.completion_length if self.completion_tokens is None else self.completion_tokens

    @property
    def shares(self) -> bool:
        """Whether a prompt is computed once for several rows."""
        return self.prompt_tokens is not None and self.prompt_tokens < self.rows * self.prompt_length


@dataclass(frozen=True)
class Evaluated:
    """Sequences that go through the model at once in an evaluation before or after the training.

    Attributes:
        held_out: whose loss is measured.
        answered: that are generated.
        read: whose logits are held all at once.
    """

    held_out: tuple[Batch, ...] = ()
    answered: tuple[Batch, ...] = ()
    read: tuple[Batch, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """The numbers of a run that memory depends on, per process.

    Attributes:
        rows: sequences of one forward and backward pass (`per_device_train_batch_size`; two for each comparison).
        generated_rows: completions that are generated at once.
        prompt_length: tokens.
        completion_length: tokens.
        weight_bytes: bytes of a parameter of the base model (4 for float32).
        linear_bytes: the same for the parameters that quantization replaces; equal to `weight_bytes` without it.
        trainable_bytes: bytes of a trained parameter.
        activation_bytes: bytes of an activation: the autocast type where there is one.
        autocast: there is one.
        optimizer: name of the optimizer (`optim`).
        gradient_checkpointing: only each layer's input is kept for the backward pass.
        accumulates: gradients of earlier micro-batches wait for the last one.
        padded: rows of a batch differ in length: attention then takes a mask, and keys and values once for each head.
        packed: rows lie end to end in one row of tokens (`hpt_trl.models.padding_free`).
        prompts: of a micro-batch, where packed rows share them; None: each row has its own.
        reference_model: a frozen copy of the weights (KL term without LoRA).
        generates: the process holds the KV cache of its rollouts (RL without vLLM).
        head_logits: the logits of all positions are held at once (no fused head).
        triton: the fused head has its kernels (on GPUs); without them padded rows are scored whole, in PyTorch.
        trained_positions: share of the positions that the head goes back over (Rho-1's selected tokens).
        scores: the model is a sequence classifier: its head gives one number per row.
        reference_bytes: of a reference or value model that is no copy of the weights, held whole.
        reward_models: bytes of the reward models, each held whole.
        language_model: bytes of the model that a critic's baselines ask after the training, held whole.
        heads: heads for future tokens.
        sharding: what the processes share out.
        others: further micro-batches of a step, which have other heights and widths: those with demonstrations.
        updates_at_once: the optimizer forms a value of all that is trained at once (PyTorch's own AdamW on GPUs).
        eager: attention keeps its scores, in float32 and in the type of the computation.
        evaluated: what the evaluations hold.
    """

    rows: int
    generated_rows: int
    prompt_length: int
    completion_length: int
    weight_bytes: float
    linear_bytes: float
    trainable_bytes: float
    activation_bytes: float
    autocast: bool = False
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = True
    accumulates: bool = False
    padded: bool = False
    packed: bool = False
    prompts: int | None = None
    reference_model: bool = False
    generates: bool = True
    head_logits: bool = False
    triton: bool = True
    trained_positions: float = 1.0
    scores: bool = False
    reference_bytes: float = 0.0
    reward_models: float = 0.0
    language_model: float = 0.0
    heads: FurtherHeads = FurtherHeads()
    sharding: Sharding = Sharding()
    others: tuple[Batch, ...] = ()
    updates_at_once: bool = False
    eager: bool = False
    evaluated: Evaluated = Evaluated()

    @property
    def batch(self) -> Batch:
        """The micro-batch without demonstrations."""
        prompt_tokens = None if self.prompts is None else self.prompts * self.prompt_length
        return Batch(self.rows, self.prompt_length, self.completion_length, prompt_tokens)

    @property
    def generated(self) -> Batch:
        """What a generation draws at once."""
        return Batch(self.generated_rows, self.prompt_length, self.completion_length)
