"""Seconds of a step of a recipe whose model and rows are here, by the model of `hpt_trl.planning.cost`."""

from dataclasses import replace

from hpt_trl.planning.cost import Assumptions, Cost, cost_of
from hpt_trl.planning.critics import critic_size, has_critic, scoring_model_of
from hpt_trl.planning.devices import Device, device_of
from hpt_trl.planning.lengths import Lengths
from hpt_trl.planning.memory_settings import sizes_of
from hpt_trl.planning.named_models import VALUE_MODEL, named_config
from hpt_trl.planning.rows import rows_there
from hpt_trl.runs.prepared import Prepared


def step_of(prepared: Prepared, lengths: Lengths) -> tuple[Cost, Device] | None:
    """Returns what a training step takes, and on what; None on an accelerator whose speed is not known.

    Rows are as long as they are on average, and completions as long as they may be.
    """
    recipe, config = prepared.recipe, prepared.model_config
    device = device_of(recipe)
    if device is None:
        return None
    mean = max(round(lengths.mean), 1)
    drawn = recipe.config.max_completion_length if "num_generations" in recipe.keys else 0
    assumed = replace(
        Assumptions(), utilisation=device.utilisation, mean_prompt=mean, mean_row=mean, mean_completion=drawn
    )
    sizes = sizes_of(recipe, config, lengths)
    rows, size = sizes.generated_rows, sizes.weight_bytes
    most = rows_there(prepared)
    named = named_config(recipe, VALUE_MODEL) if has_critic(recipe) else None
    critic = critic_size(recipe, config, sizes, named, scoring_model_of(prepared))
    return cost_of(
        recipe,
        config,
        assumed,
        generated_rows=rows,
        weight_bytes=size,
        device=device,
        most_rows=most,
        critic=critic,
    ), device


def step_line(step: tuple[Cost, Device] | None) -> str:
    """The time of a step, and what it is computed of."""
    if step is None:
        return "not known of this device; --measure takes one"
    cost, device = step
    generating = f", {_seconds(cost.generation_seconds)} of it generating" if cost.generation_seconds else ""
    return (
        f"about {_seconds(cost.seconds)}{generating}\n"
        f"  computed, not measured (--measure does): {cost.rows:,} rows of {cost.row_length:,} tokens at "
        f"{device.utilisation:.0%} of the {_flops(device.flops)} of {device.name}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


def _flops(flops: float) -> str:
    return f"{flops / 1e12:,.0f} TFLOPS" if flops >= 1e13 else f"{flops / 1e9:,.0f} GFLOPS"
