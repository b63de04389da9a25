"""What a training holds whatever its micro-batches are: weights, optimizer states, gradients and their buffers."""

from typing import NamedTuple

from hpt_trl.models.parameters import Parameters
from hpt_trl.planning.critics import CriticSize
from hpt_trl.planning.memory_parts import more_of_embeddings, optimizer_bytes
from hpt_trl.planning.memory_sizes import Sizes


class Held(NamedTuple):
    """Bytes per process.

    Attributes:
        weights: of the trained model and its adapter, its share where they are spread.
        critic: the same of what a critic has of its own.
        reference: weights of frozen models that are asked about tokens.
        optimizer: states, and master weights where there are any.
        gradients: of all that is trained, once a backward pass has ended.
        buckets: buffers in which gradients are reduced.
    """

    weights: float
    critic: float
    reference: float
    optimizer: float
    gradients: float
    buckets: float


def held_of(sizes: Sizes, counts: Parameters, critic: CriticSize | None = None) -> Held:
    """Returns what a process holds.

    Args:
        counts: of the trained model.
        critic: of more than a head.
    """
    sharding = sizes.sharding
    own, own_bytes, shared = (0, 0.0, 0) if critic is None else (critic.own, critic.own_bytes, critic.shared)
    # Pairs of parameters and bytes of each; PEFT trains copies of modules in the type of the base.
    trained = [(counts.trainable - counts.copied, sizes.trainable_bytes), (counts.copied, sizes.weight_bytes)]
    trained.append((own, own_bytes))
    base = (counts.total - counts.linear) * sizes.weight_bytes + counts.linear * sizes.linear_bytes
    adapter = (counts.adapter - counts.copied) * sizes.trainable_bytes + counts.copied * sizes.weight_bytes
    weights = (base + adapter) / sharding.weights
    # FSDP spreads by module, what two modules share once for each.
    again = sizes.linear_bytes * shared if sharding.by_module else 0.0
    of_critic = (own_bytes * own + again) / sharding.weights
    reference = sizes.reference_bytes + (base / sharding.weights if sizes.reference_model else 0.0)
    every_gradient = sum(number * (sharding.gradient_bytes or size) for number, size in trained)
    gradients = every_gradient / sharding.gradients
    optimizer = _states(sizes, counts, trained) / sharding.optimizer
    if sharding.offload_optimizer:
        optimizer, gradients = 0.0, (0.0 if sharding.gradients > 1 else gradients)
    if sharding.offload_weights:
        weights, of_critic = 0.0, 0.0
    buckets = _buckets(sizes, every_gradient, counts.trainable + own)
    return Held(weights, of_critic, reference, optimizer, gradients, buckets)


def _states(sizes: Sizes, counts: Parameters, trained: list[tuple[int, float]]) -> float:
    """The optimizer's, of all processes together."""
    masters = sizes.sharding.master_weights
    states = sum(number * optimizer_bytes(sizes.optimizer, 4.0 if masters else size) for number, size in trained)
    states += counts.embeddings * more_of_embeddings(sizes.optimizer)
    if masters:
        states += 4 * sum(number for number, _ in trained)
    return states


def _buckets(sizes: Sizes, gradients: float, parameters: int) -> float:
    """Buffers in which the gradients of trained parameters are reduced.

    Args:
        gradients: bytes of all of them.
    """
    sharding = sizes.sharding
    if sharding.bucket is None:
        return gradients
    # Allocated whole; on a CPU pages that no gradient reaches take no memory.
    elements = sharding.bucket if sizes.triton else min(sharding.bucket, parameters)
    return elements * (sharding.gradient_bytes or sizes.trainable_bytes)
