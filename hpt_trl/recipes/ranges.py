"""The ranges of the keys of every stage, which Transformers and TRL take unchecked.

The other wings declare those of their own keys: `hpt_trl.data.arguments`, `hpt_trl.models.ranges`,
`hpt_trl.rewards.arguments`, `hpt_trl.rollouts.ranges`, and each stage.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpt_trl.data.arguments import DATA_RULES
from hpt_trl.data.layout_names import layout_rule
from hpt_trl.models.ranges import MODEL_RULES
from hpt_trl.rewards.arguments import REWARD_RULES
from hpt_trl.settings.ranges import Rule, above, at_least, count_or_share, one_of, rules_of, share

if TYPE_CHECKING:
    from hpt_trl.recipes.recipe import Stage

# What `torch.utils.checkpoint.checkpoint` takes of a recipe, some of it by way of its keywords.
_OF_CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")

COMMON_RULES = (
    at_least(
        1,
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("global_batch_size", "eval_num_generations", "eval_max_new_tokens", "eval_accumulation_steps"),
        *("save_total_limit", "max_length", "torch_empty_cache_steps", "ddp_timeout"),
        *("ddp_bucket_cap_mb", "dataloader_prefetch_factor"),
    ),
    at_least(0, "weight_decay", "warmup_steps", "max_grad_norm", "eval_samples", "eval_temperature", "eval_delay"),
    at_least(0, "router_aux_loss_coef", "neftune_noise_alpha"),
    Rule(("pad_to_multiple_of",), "1 or more, or auto", least=1, also=("auto",)),
    # Each is a process of its own: a machine that is asked for more hangs.
    Rule(("dataloader_num_workers",), "0 to 1024", least=0, most=1024),
    Rule(("dataset_num_proc",), "1 to 1024", least=1, most=1024),
    above(0, "learning_rate", "num_train_epochs", "adam_epsilon"),
    share("adam_beta1", "adam_beta2", "label_smoothing_factor", one=False),
    Rule(("max_steps",), "1 or more, or -1 to count by `num_train_epochs`", least=1, also=(-1,)),
    Rule(("seed", "data_seed"), "0 to 4294967295", least=0, below=2**32),
    count_or_share("logging_steps", "save_steps", "eval_steps"),
    # The second is the first's name of old.
    Rule(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        f"a mapping with {', '.join(_OF_CHECKPOINTING)}",
        fields=_OF_CHECKPOINTING,
    ),
)


def rules_for(stage: "Stage") -> dict[str, Rule]:
    """Returns key -> rule for the keys of a stage; its own stand above the common ones, its config's above both."""
    shared = (*COMMON_RULES, *_library_rules(), *DATA_RULES, *MODEL_RULES, *REWARD_RULES)
    rules = (*shared, layout_rule(stage.layouts), *stage.rules, *rules_of(stage.config_class))
    return {key: rule for rule in rules for key in rule.keys}


def _library_rules() -> Iterator[Rule]:
    """What Transformers' own classes say of keys that it takes as texts and mappings."""
    from accelerate.utils import DynamoBackend
    from transformers.debug_utils import DebugOption
    from transformers.trainer_pt_utils import AcceleratorConfig

    debug = tuple(option.value for option in DebugOption)
    yield Rule(("debug",), f"{', '.join(debug)}, or a list of them", names=debug, also=("", [], " ".join(debug)))
    backends = sorted(backend.value.lower() for backend in DynamoBackend)
    yield one_of("torch_compile_backend", *backends)
    fields = tuple(field.name for field in dataclasses.fields(AcceleratorConfig))
    yield Rule(("accelerator_config",), f"a mapping with {', '.join(fields)}, or a JSON file of them", fields=fields)
