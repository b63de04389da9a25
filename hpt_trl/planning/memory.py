"""An estimate of the peak memory of one process, from a model's config alone.

`hpt-trl check` shows it, so that a recipe that cannot fit is known before a download. Parameters are counted
(`hpt_trl.models.parameters`), activations follow from a formula (see `estimate`), the numbers come from the recipe and
its profile (`hpt_trl.planning.memory_settings`). `benchmarks/memory.py` compares it with measured peaks.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpt_trl.models.parameters import Parameters, count_parameters
from hpt_trl.planning.critics import CriticSize
from hpt_trl.planning.memory_forward import evaluation_of, generation_of, logits_of
from hpt_trl.planning.memory_held import Held, held_of
from hpt_trl.planning.memory_parts import activations, copies_of, head_of, layer_of, with_heads
from hpt_trl.planning.memory_sizes import Batch, Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from trl import ModelConfig


# Phases of a step, one of which has the peak.
BEGINS_BACKWARD, ENDS_BACKWARD, GENERATES = "begin of the backward pass", "end of the backward pass", "generation"
UPDATES, EVALUATES = "optimizer's step", "evaluation on held-out rows"
# After the training of a critic, whose optimizer is still there.
COMPARES = "baselines after the training"
# The only phase of a stage that trains nothing.
MEASURES = "evaluation"

_NOTES = {
    "weights": "",
    "critic": "of its own",
    "reference_model": "",
    "reward_models": "",
    "optimizer": "",
    "buckets": "",
    "copies": "of weights, while in use",
    "gradients": "",
    "activations": "while training",
    "head": "of the loss",
    "kv_cache": "while generating",
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process, by part, and their sum in each phase of a step.

    Attributes:
        weights: of the trained model, its share where they are spread.
        critic: the weights of a critic that the policy does not have; its gradients and the rest count with the others.
        reference_model: weights.
        reward_models: weights.
        optimizer: states, and master weights where there are any.
        gradients: of all that is trained.
        buckets: buffers in which gradients are reduced.
        copies: weights in the autocast type, or gathered from other processes.
        activations: what the backward pass needs, and its own values of one layer.
        head: of the loss: hidden states, logits, the head's own gradient.
        kv_cache: keys, values and logits of a generation.
        phases: what is held at once, by phase.
    """

    weights: int
    critic: int
    reference_model: int
    reward_models: int
    optimizer: int
    gradients: int
    buckets: int
    copies: int
    activations: int
    head: int
    kv_cache: int
    phases: dict[str, int]

    @property
    def total(self) -> int:
        """Peak in bytes: of the phase that holds most."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    def parts(self) -> dict[str, int]:
        """Returns the bytes of each part."""
        return {name: getattr(self, name) for name in _NOTES}

    def table(self) -> str:
        """Returns the parts and the peak in GiB, a line each; what a run has not is left out."""
        always: tuple[str, ...] = ("weights", "optimizer", "gradients", "activations", "head", "kv_cache")
        if MEASURES in self.phases:
            always = ("weights", "kv_cache")
        lines = [
            (name.replace("_", " "), getattr(self, name), note)
            for name, note in _NOTES.items()
            if name in always or getattr(self, name)
        ]
        lines.append(("peak per process", self.total, self.peak_phase))
        # Short enough for a terminal of 80 columns.
        shown = [
            f"  {name.replace('kv', 'KV'):<17}{size / 2**30:9.3f} GiB  {note}".rstrip() for name, size, note in lines
        ]
        return "\n".join([*shown, "  without the framework's own few hundred MiB"])


def estimate(
    config: "PretrainedConfig",
    sizes: Sizes,
    model_args: "ModelConfig | None" = None,
    critic: CriticSize | None = None,
) -> MemoryEstimate:
    """Estimates the peak memory of one process.

    With N parameters, T of them trained, L layers, hidden width h, key and value width k (both together), vocabulary V,
    rows R, tokens per row S = prompt + completion:

    - weights: N x bytes (quantized linear layers: 0.56 or 1 byte a parameter) and the adapter;
    - copies: the linear layers in the autocast type where that is smaller, or what is gathered of spread weights;
    - gradients: T x bytes; optimizer: T x the state of the optimizer (Adam: two moments) and DeepSpeed's float32 copy;
      buckets: the gradients again (DDP), or DeepSpeed's 5 x 10^8;
    - activations: of all layers (see `layer_of`), with gradient checkpointing L inputs and one layer, and the gradients
      of one layer's inner values. Attention scores are kept by `eager` alone, the mask of a padded batch by SDPA;
    - head: the last hidden states with their gradient in float32, and one tile of the fused head (at most 4096
      positions x 32768 entries), a trained head's float32 gradient V x h. Heads for future tokens count as layers, and
      all their states as the last one's. Without a fused head all R x S x V logits in
      float32, twice; a reward model has the last hidden states alone;
    - KV cache: generated rows x S x k x L x bytes, the prompts' widest values, and the logits of one position.

    The peak is that of the micro-batch that needs most, and the largest of: the begin of the backward pass (all
    activations, the head, gradients of earlier micro-batches), its end (all gradients, one layer), a generation,
    the optimizer's step where it forms a value of every parameter, an evaluation (one layer's values and a tile of
    the head, or a generation). Vision towers count as weights, not as activations; pass image tokens as prompt tokens.

    Args:
        config: the model's config.
        sizes: the run's numbers.
        model_args: LoRA settings; None trains every parameter.
        critic: of more than a head (PPO).
    """
    counts = with_heads(count_parameters(config, model_args, scores=sizes.scores), sizes)
    return max(
        (_of_batch(config, sizes, batch, counts, critic) for batch in (sizes.batch, *sizes.others)),
        key=lambda found: found.total,
    )


def _of_batch(
    config: "PretrainedConfig",
    sizes: Sizes,
    batch: Batch,
    counts: Parameters,
    critic: CriticSize | None,
) -> MemoryEstimate:
    """The estimate of a step that trains one micro-batch."""
    text_config = config.get_text_config()
    held = held_of(sizes, counts, critic)
    copies, copies_to_generate = copies_of(counts, text_config.num_hidden_layers, sizes)
    begin, end = activations(config, sizes, batch, counts)
    if critic is not None:
        of_critic = dataclasses.replace(sizes, weight_bytes=critic.weight_bytes)
        more, last = activations(critic.config, of_critic, batch, critic.counts, run=critic.layers)
        begin, end = begin + more, max(end, last)
    head, head_gradient = head_of(text_config, sizes, batch, trained=counts.trains_head)
    layer = layer_of(text_config, sizes, counts)
    kv_cache = generation_of(text_config, sizes, layer, sizes.generated) if sizes.generates else 0.0

    stays = held.weights + held.critic + held.reference + sizes.reward_models + held.optimizer
    stays += held.buckets if sizes.sharding.bucket_stays else 0.0
    before, after = _buckets_in_backward(sizes, held)
    waiting = held.gradients if sizes.accumulates else 0.0
    # Tied or not, the embedding's gradient is made whole before it is added to what is there.
    embedding = counts.embeddings * sizes.weight_bytes
    working = layer.working * batch.tokens
    ending = after + (copies if sizes.sharding.gathered else 0) + held.gradients + embedding + end
    phases = {
        BEGINS_BACKWARD: stays + before + copies + waiting + max(begin - working + head, begin + head_gradient),
        ENDS_BACKWARD: stays + ending,
    }
    if sizes.generates:
        phases[GENERATES] = stays + copies_to_generate + kv_cache
    if sizes.updates_at_once:
        # The root of all second moments.
        phases[UPDATES] = stays + 2 * held.gradients
    if evaluating := evaluation_of(text_config, sizes, layer):
        phases[EVALUATES] = stays + copies_to_generate + evaluating
    if sizes.language_model:
        phases[COMPARES] = stays + sizes.language_model
    return MemoryEstimate(
        weights=round(held.weights),
        critic=round(held.critic),
        reference_model=round(held.reference),
        reward_models=round(sizes.reward_models),
        optimizer=round(held.optimizer),
        gradients=round(held.gradients),
        buckets=round(held.buckets),
        copies=round(max(copies, copies_to_generate if sizes.generates else 0)),
        activations=round(begin),
        head=round(head),
        kv_cache=round(kv_cache),
        phases={name: round(size) for name, size in phases.items()},
    )


def _buckets_in_backward(sizes: Sizes, held: Held) -> tuple[float, float]:
    """Buffers of gradients that are there during a backward pass alone: as it begins, and as it ends."""
    if sizes.sharding.bucket_stays:
        return 0.0, 0.0
    # Allocated as it begins; on a CPU no gradient has reached its pages then.
    return held.buckets if sizes.triton else 0.0, held.buckets


def estimate_measuring(config: "PretrainedConfig", sizes: Sizes) -> MemoryEstimate:
    """Estimates the peak memory of one process that only generates, or reads texts.

    Weights, their copies in the autocast type, the KV cache, and the larger of one position's logits of all rows and
    all logits of the rows that are read at once; see `estimate`.

    Args:
        sizes: `rows` of `completion_length` tokens are read at once, `generated_rows` are generated.
    """
    counts, text_config = count_parameters(config), config.get_text_config()
    weights = (counts.total - counts.linear) * sizes.weight_bytes + counts.linear * sizes.linear_bytes
    copies, _ = copies_of(counts, text_config.num_hidden_layers, sizes)
    layer = layer_of(text_config, sizes, counts)
    length = sizes.prompt_length + sizes.completion_length
    generating = generation_of(text_config, sizes, layer, sizes.generated)
    reading = sizes.rows * length * (layer.working + logits_of(text_config, sizes))
    total = weights + copies + sizes.reward_models + max(generating, reading)
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(MemoryEstimate) if field.name != "phases"), 0)
    parts = {"weights": weights, "copies": copies, "reward_models": sizes.reward_models}
    parts |= {"kv_cache": generating, "head": reading}
    return MemoryEstimate(
        **nothing | {name: round(size) for name, size in parts.items()}, phases={MEASURES: round(total)}
    )
