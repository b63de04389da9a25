"""Settings that the libraries refuse, or choke on, once the model is loaded: told before, by their key."""

import inspect
import re
from pathlib import Path

import pytest
from transformers import PreTrainedModel
from transformers.generation import configuration_utils
from transformers.integrations import is_deepspeed_zero3_enabled

from hpt_trl.errors import UserError
from hpt_trl.recipes.loading import LOADING
from hpt_trl.recipes.packages import missing, wanted
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.rollouts.ranges import CACHES
from hpt_trl.runs.preparation import prepare
from hpt_trl.runs.runner import run

EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}
# Keys -> the one that is named, and what is said of it.
SETTINGS = [
    ({"save_strategy": "best"}, "save_strategy", "by which metric the model is best is not said"),
    ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy", "nothing would be saved"),
    *(
        ({"lr_scheduler_type": kind, "lr_scheduler_kwargs": kwargs}, "lr_scheduler_kwargs", "does not take it")
        for kind, kwargs in (
            ("cosine", {"num_cycles": "two"}),
            ("polynomial", {"power": "x"}),
            ("inverse_sqrt", {"timescale": 0}),
        )
    ),
    ({"deepspeed": False}, "deepspeed", "allowed: a mapping, or a file of one"),
    ({"deepspeed": {"zero_optimization": 3}}, "deepspeed", "allowed: a mapping, or a file of one"),
    ({"optim_args": "foo"}, "optim_args", "allowed: name=value"),
    ({"optim_args": "a=1,b"}, "optim_args", "allowed: name=value"),
    ({"optim": "adamw_torch_xla"}, "optim", "torch_xla"),
    ({"torch_compile_mode": "max-autotun"}, "torch_compile_mode", "mean `max-autotune`?"),
    ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers", "there are none to keep"),
    ({"activation_offloading": True}, "activation_offloading", "on the CPU"),
    ({"use_peft": True, "lora_task_type": "CAUSAL"}, "lora_task_type", "Did you mean `CAUSAL_LM`?"),
    ({"dataloader_num_workers": 100_000}, "dataloader_num_workers", "allowed: 0 to 1024"),
    ({"dataset_num_proc": 10**12}, "dataset_num_proc", "allowed: 1 to 1024"),
    ({"use_liger_kernel": True}, "use_liger_kernel", "true needs liger-kernel, which is not installed here"),
    ({"attn_implementation": "flash_attention_2"}, "attn_implementation", "pip install flash-attn"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation", "pip install kernels"),
    *(
        ({"model_init_kwargs": {name: value}}, "model_init_kwargs", said)
        for name, value, said in (
            ("attn_implementation", "flash_attention_2", "pip install flash-attn"),
            ("use_kernels", True, "pip install kernels"),
            ("use_kernels", "yes", "allowed: true or false"),
            ("use_safetensors", "false", "allowed: true or false"),
            ("low_cpu_mem_usage", 1, "allowed: true or false"),
            ("revision", 7, "allowed: a text"),
            ("max_memory", "20GB", "allowed: a mapping"),
            ("device_map", True, "allowed: auto, a device"),
            ("quantization_config", "4bit", "allowed: a mapping"),
            ("key_mapping", "x", "allowed: a mapping"),
            ("gguf_file", "x.gguf", "`gguf_file` cannot be set by a recipe; what is trained is read from safetensors"),
            ("subfolder", "nowhere", "write the folder itself as `model_name_or_path`"),
            ("state_dict", "x", "drop it"),
            ("tp_size", 2, "--accelerate fsdp2"),
            ("code_revision", "main", "needs `trust_remote_code: true`"),
        )
    ),
    ({"optim": "lomo"}, "optim", "lomo needs lomo-optim"),
    ({"optim": "schedule_free_adamw"}, "optim", "needs schedulefree"),
]
_LOADED = [
    ({"attn_implementation": "sdpaa"}, "attn_implementation", "Did you mean `sdpa`?"),
    ({"padding_free": True}, "padding_free", "only FlashAttention keeps them apart"),
    ({"model_init_kwargs": {"foo": 1}}, "model_init_kwargs", "`foo` is neither a field of LlamaConfig"),
    ({"model_init_kwargs": {"num_hiden_layers": 1}}, "model_init_kwargs", "Did you mean `num_hidden_layers`?"),
    ({"model_init_kwargs": {"hidden_size": 64}}, "model_init_kwargs", "but that of the model is (372, 32)"),
    ({"model_init_kwargs": {"dtype": "float3"}}, "model_init_kwargs", "`dtype: 'float3'` is none"),
    ({"model_init_kwargs": {"attn_implementation": "x"}}, "model_init_kwargs", "'x' is no attention"),
    ({"model_init_kwargs": {"device_map": "cpux"}}, "model_init_kwargs", "`device_map: 'cpux'` is no device here"),
    ({"model_init_kwargs": {"device_map": 100}}, "model_init_kwargs", "`device_map: 100`"),
    (
        {"model_init_kwargs": {"device_map": {"": "disk"}}},
        "model_init_kwargs",
        "`device_map: 'disk'` is no device",
    ),
    ({"model_init_kwargs": {"experts_implementation": "eagr"}}, "model_init_kwargs", "Did you mean `eager`?"),
    ({"model_init_kwargs": {"variant": "fp16"}}, "model_init_kwargs", "has no weights of that name"),
    ({"model_init_kwargs": {"quantization_config": {"quant_method": "hq"}}}, "model_init_kwargs", "is not taken: "),
    (
        {"model_init_kwargs": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}},
        "model_init_kwargs",
        "add `use_peft: true`",
    ),
    ({"model_init_kwargs": {"num_hidden_layers": "two"}}, "model_init_kwargs", "expected int, got str"),
    ({"model_init_kwargs": {"num_attention_heads": 0}}, "model_init_kwargs", "no model can be made with it"),
]


@pytest.mark.parametrize(("changes", "key", "said"), SETTINGS, ids=str)
def test_settings_are_tried_before_anything_is_loaded(recipe, changes, key, said):
    asks = list(wanted(changes))
    if any(one.package in said for one in asks) and not missing(changes):
        pytest.skip(f"{asks[0].package} is installed")
    with pytest.raises(UserError) as caught:
        read_recipe(Path(recipe("sft", **changes)))
    assert f"`{key}`: " in str(caught.value) and said in str(caught.value)


def test_a_refused_config_is_not_that_of_the_next_run(recipe):
    with pytest.raises(UserError) as refused:
        read_recipe(Path(recipe("sft", deepspeed={"zero_optimization": 3})))
    # Its frames hold the config.
    assert refused.value.__context__ is not None and not is_deepspeed_zero3_enabled()


@pytest.mark.parametrize(("changes", "key", "said"), _LOADED, ids=str)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_what_a_model_does_not_take_is_told_before_it_is_loaded(recipe, stage, changes, key, said):
    with pytest.raises(UserError) as caught:
        prepare(recipe(stage, **changes), [])
    assert f"`{key}`: " in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 1},
        {"attention_dropout": 0.1, "dtype": "bfloat16"},
        {"device_map": "cpu", "use_safetensors": True, "revision": "main", "experts_implementation": None},
        {"attn_implementation": "eager", "low_cpu_mem_usage": True, "max_position_embeddings": 256},
    ],
)
def test_what_a_model_takes_is_taken(recipe, settings):
    run(recipe("sft", model_init_kwargs=settings, max_steps=1), [])


def test_settings_of_loading_are_those_of_transformers():
    signature = inspect.signature(PreTrainedModel.from_pretrained)
    names = {name for name, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY or name == "config"}
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    names |= set(re.findall(r'kwargs\.pop\("([a-z]\w*)"', source)) | set(re.findall(r'"(\w+)" in kwargs', source))
    assert not names - set(LOADING)


def test_caches_are_those_of_transformers():
    deprecated = configuration_utils.DEPRECATED_STATIC_CACHE_IMPLEMENTATIONS
    assert set(CACHES) == set(configuration_utils.ALL_CACHE_IMPLEMENTATIONS) - set(deprecated)


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "best"},
        {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"save_strategy": "no"},
    ],
    ids=str,
)
def test_the_best_model_is_by_a_metric_of_the_evaluation(recipe, changes):
    path = recipe("sft", **EVALUATING | changes, metric_for_best_model="los", max_steps=1)
    with pytest.raises(UserError, match=r"the evaluation gives no `los`; allowed: .*eval_loss.*mean `eval_loss`\?"):
        run(path, [])
    run(path, ["--metric_for_best_model", "loss", "--overwrite", "true"])


def test_a_reference_that_is_none_is_not_moved(recipe):
    with pytest.raises(UserError, match="`sync_ref_model`: true: with `beta: 0` there is no reference to move"):
        read_recipe(Path(recipe("grpo", sync_ref_model=True)))
    assert read_recipe(Path(recipe("grpo", sync_ref_model=True, beta=0.1)))


def test_a_divergence_is_one_of_those_that_there_are(recipe):
    with pytest.raises(UserError, match=r"`f_divergence_type`: .* Did you mean `forward_kl`\?"):
        read_recipe(Path(recipe("dpo", f_divergence_type="foward_kl")))
