"""What a recipe asks of the machine, its packages and its processes, settled before a trainer's config is made."""

import os
from typing import Any

from hpt_trl.errors import Collector, UserError
from hpt_trl.recipes.declared import Declared
from hpt_trl.recipes.packages import missing
from hpt_trl.recipes.profiles import Profile
from hpt_trl.settings.file import Sources


def check_quantization(values: dict[str, Any], declared: Declared, sources: Sources) -> None:
    """Refuses quantized weights without an adapter, which nothing would train."""
    asked = [key for key in ("load_in_4bit", "load_in_8bit") if values.get(key)]
    # A stage that makes its own model refuses quantization altogether.
    if asked and not values.get("use_peft") and not declared.makes_model and declared.trains:
        raise sources.error(
            asked[0], "true: quantized weights are frozen, so that an adapter has to be trained; add `use_peft: true`."
        )


def check_packages(values: dict[str, Any], sources: Sources, mistakes: Collector) -> None:
    """Notes keys that need a package which is not installed; the libraries do once the model is loaded."""
    for one in missing(values):
        said = f"{sources.quoted(one.key)} needs {one.package}, which is not installed here: {one.install}"
        mistakes.note(sources.error(one.key, said))


def settle_device(values: dict[str, Any], sources: Sources) -> None:
    """Chooses the CPU where there is nothing else and the recipe is silent; refuses what the device cannot do."""
    import torch

    from hpt_trl.models.fsdp2 import mend_fsdp2
    from hpt_trl.recipes.sharding_on_cpu import launched_sharded, shard_on_cpu

    mend_fsdp2()
    accelerator = torch.accelerator.is_available()
    # The recipe decides on the precision; a launcher's word would stand in for a `bf16: false`.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    sharded = not accelerator and launched_sharded()
    if sharded:
        _settle_sharding(values, sources)
        shard_on_cpu()
    elif "use_cpu" not in values:
        values["use_cpu"] = not accelerator
    on_cpu = values["use_cpu"]
    if not (on_cpu or accelerator or sharded):
        raise sources.error("use_cpu", "this machine has no accelerator; allowed here: true, or leave it out.")
    if on_cpu and values.get("fp16"):
        raise sources.error("fp16", "a CPU does not train in float16; allowed here: false (and `bf16` true or false).")


def _settle_sharding(values: dict[str, Any], sources: Sources) -> None:
    """Settles what differs where processes on a CPU share out the weights."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION") == "1":
        raise UserError("fsdp1 needs GPUs: PyTorch's older FSDP cannot save a whole model from a CPU. Take fsdp2.")
    if values.get("use_cpu"):
        raise sources.error("use_cpu", "with it accelerate would not shard; drop the line, the CPU is used anyway.")
    for key in ("bf16", "fp16"):
        if values.get(key) and key in sources.overrides:
            raise sources.error(key, "sharded processes on a CPU train in float32; allowed here: false.")
        if values.get(key) and os.environ.get("RANK", "0") == "0":
            print(f"`{key}: true` is left out: sharded processes on a CPU train in float32.", flush=True)
    values |= {"use_cpu": False, "bf16": False, "fp16": False}


def check_profile(config: Any, profile: Profile, sources: Sources) -> None:
    """Refuses numbers of a DeepSpeed profile that are not the recipe's, before DeepSpeed itself does after loading."""
    stated = {
        "gradient_accumulation_steps": (profile.gradient_accumulation_steps, "gradient_accumulation_steps"),
        "max_grad_norm": (profile.gradient_clipping, "gradient_clipping"),
    }
    for key, (number, name) in stated.items():
        if number is not None and number != getattr(config, key):
            batch = "global_batch_size"
            derived = key == "gradient_accumulation_steps" and (
                batch in sources.file.values or batch in sources.overrides
            )
            raise sources.error(
                batch if derived else key,
                f"`{key}` is {getattr(config, key)}, but `{name}` in the accelerate config's DeepSpeed section is "
                f"{number}; drop the line there, and the recipe's number holds.",
            )
