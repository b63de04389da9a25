"""The estimate of peak memory: exact parameter counts, activations against what autograd really keeps, and measured
peaks of whole runs."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen3Config
from transformers.trainer_pt_utils import LabelSmoother
from trl import ModelConfig

from benchmarks import cluster
from benchmarks import memory as benchmark
from hpt_trl.cli import main
from hpt_trl.models.padding_free.packing import pack
from hpt_trl.models.padding_free.trunks import packed_arguments, take_packed_rows
from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning import facts
from hpt_trl.planning.critics import whole_value_model
from hpt_trl.planning.memory import (
    BEGINS_BACKWARD,
    COMPARES,
    ENDS_BACKWARD,
    EVALUATES,
    GENERATES,
    UPDATES,
    estimate,
)
from hpt_trl.planning.memory_parts import KEPT_LOGITS, ZERO_BUCKET
from hpt_trl.planning.memory_settings import sharding_of
from hpt_trl.planning.memory_sizes import Batch, Evaluated, Sizes
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.profiles import Profile, find_profile, read_profile
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.preparation import prepare_recipe

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def tiny(config_class=LlamaConfig, layers: int = 2, **options):
    return config_class(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        **options,
    )


def sizes(**options) -> Sizes:
    given = {
        "rows": 4,
        "generated_rows": 16,
        "prompt_length": 96,
        "completion_length": 160,
        "weight_bytes": 4,
        "linear_bytes": 4,
        "trainable_bytes": 4,
        "activation_bytes": 4,
    }
    return Sizes(**(given | options))


def test_smollm2_135m_has_134_515_008_parameters():
    counts = count_parameters(SMOLLM2_135M)
    assert counts.total == counts.trainable == 134515008 and counts.adapter == 0
    assert counts.linear == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)


@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_the_real_model(tied):
    config = tiny(tie_word_embeddings=tied)
    assert count_parameters(config).total == AutoModelForCausalLM.from_config(config).num_parameters()


def test_lora_parameters_follow_rank_and_target_modules():
    # q_proj and v_proj (PEFT's default for Llama): r * (in + out) each, in both layers.
    counts = count_parameters(tiny(), ModelConfig(use_peft=True, lora_r=8))
    assert counts.trainable == counts.adapter == 2 * 8 * ((128 + 128) + (128 + 64))
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    counts = count_parameters(tiny(), ModelConfig(use_peft=True, lora_r=8, lora_target_modules=every))
    assert counts.adapter == 2 * 8 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384))
    assert counts.adapted_inputs == 2 * (6 * 128 + 384)


def kept_by_autograd(
    config,
    dtype: torch.dtype,
    *,
    autocast: bool,
    lora: bool,
    padded: bool,
    attention: str = "sdpa",
    shared: int | None = None,
) -> int:
    """Returns the bytes of all storages that a forward of the backbone saves for the backward pass.

    Args:
        shared: tokens of a beginning that rows have in common, where they lie end to end; 0 of rows that share none.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
    trunk = model.model
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(4, 256, dtype=torch.long)
    if padded:
        mask[0, -5:] = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ids = torch.randint(0, 512, (4, 256))
        if shared is None:
            trunk(input_ids=ids, attention_mask=mask, use_cache=False)
        else:
            ids[:, :shared], ids[:, shared] = ids[0, :shared], torch.arange(4)
            asked = torch.arange(256).expand(4, -1) >= shared
            take_packed_rows(trunk)
            trunk.is_padding_free = True  # as its first batch would show
            trunk(**packed_arguments(pack(ids, mask, asked)), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("config_class", "lora", "padded"),
    [(LlamaConfig, False, True), (LlamaConfig, True, False), (Qwen2Config, False, False), (Qwen3Config, True, True)],
)
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_activations_of_a_layer_are_what_autograd_keeps(config_class, lora, padded, dtype, autocast):
    settings = {"autocast": autocast, "lora": lora, "padded": padded}
    two, four = (kept_by_autograd(tiny(config_class, layers), dtype, **settings) for layers in (2, 4))
    numbers = sizes(
        weight_bytes=dtype.itemsize,
        linear_bytes=dtype.itemsize,
        activation_bytes=2 if autocast else dtype.itemsize,
        autocast=autocast,
        padded=padded,
        gradient_checkpointing=False,
    )
    model_args = ModelConfig(use_peft=True, lora_r=2, lora_target_modules="all-linear") if lora else None
    parts = [estimate(tiny(config_class, layers), numbers, model_args) for layers in (2, 4)]
    estimated = parts[1].activations - parts[0].activations
    if autocast:
        # Autocast's copies of the weights, which the estimate counts by themselves.
        estimated += 2 * (count_parameters(tiny(config_class, 4)).linear - count_parameters(tiny(config_class)).linear)
    assert estimated == pytest.approx(four - two, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [0, 96])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_packed_rows_keep_what_autograd_keeps_of_them(config_class, shared, dtype):
    settings = {"autocast": False, "lora": False, "padded": False, "shared": shared}
    two, four = (kept_by_autograd(tiny(config_class, layers), dtype, **settings) for layers in (2, 4))
    size = dict.fromkeys(("weight_bytes", "linear_bytes", "activation_bytes"), dtype.itemsize)
    numbers = sizes(**size, packed=True, prompts=1 if shared else None, gradient_checkpointing=False)
    of_two, of_four = (estimate(tiny(config_class, layers), numbers).activations for layers in (2, 4))
    assert of_four - of_two == pytest.approx(four - two, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_attention_keeps_its_scores(dtype):
    def kept(attention: str) -> int:
        two, four = (
            kept_by_autograd(tiny(layers=layers), dtype, autocast=False, lora=False, padded=True, attention=attention)
            for layers in (2, 4)
        )
        return four - two

    def estimated(**options) -> int:
        size = dict.fromkeys(("weight_bytes", "linear_bytes", "activation_bytes"), dtype.itemsize)
        numbers = sizes(**size, padded=True, gradient_checkpointing=False, **options)
        two, four = (estimate(tiny(layers=layers), numbers).activations for layers in (2, 4))
        return four - two

    assert estimated(eager=True) - estimated() == pytest.approx(kept("eager") - kept("sdpa"), rel=0.05)


def test_kv_cache_is_what_the_model_keeps():
    config = tiny()
    cache = DynamicCache(config=config)
    AutoModelForCausalLM.from_config(config)(torch.randint(0, 512, (16, 256)), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # Beside it the prompts' widest values (three of the MLP's width and one of the model's) and one position's logits.
    beside = 16 * 96 * (3 * 384 + 128) * 4 + 16 * 512 * (4 + 8)
    assert estimate(config, sizes()).kv_cache == held + beside


def test_parts_of_full_training_in_float32():
    config, counts = tiny(), count_parameters(tiny())
    parts = estimate(config, sizes(gradient_checkpointing=False))
    assert parts.weights == parts.gradients == 4 * counts.total
    assert parts.optimizer == 8 * counts.total
    assert parts.reference_model == parts.copies == parts.buckets == 0
    # 4 rows of 160 scored positions: states and their gradient, a tile of logits, the head's gradient.
    assert parts.head == 640 * 128 * 8 + 640 * 512 * 4 + 512 * 128 * 4
    # All activations and the head, before the first gradient; or all gradients, the embedding's once more.
    working, stays = 4 * 256 * (3 * 384 + 128) * 4, 12 * counts.total
    head_first, then_a_layer = parts.activations - working + parts.head, parts.activations + 512 * 128 * 4
    assert parts.phases[BEGINS_BACKWARD] == stays + max(head_first, then_a_layer)
    one_layer = (parts.activations - working) // 2 + working
    assert parts.phases[ENDS_BACKWARD] == stays + parts.gradients + 512 * 128 * 4 + one_layer
    assert parts.phases[GENERATES] == stays + parts.kv_cache
    assert parts.total == max(parts.phases.values())
    assert estimate(config, sizes()).activations == one_layer + 2 * (4 * 256 * 128 * 4)
    accumulating = estimate(config, sizes(gradient_checkpointing=False, accumulates=True))
    assert accumulating.phases[BEGINS_BACKWARD] - parts.phases[BEGINS_BACKWARD] == parts.gradients


def test_what_settings_change():
    config, counts = tiny(), count_parameters(tiny())
    assert estimate(config, sizes(reference_model=True)).reference_model == 4 * counts.total
    # bitsandbytes: a byte a moment, but of embeddings four; and float32 states whatever the parameters are.
    assert estimate(config, sizes(optimizer="adamw_8bit")).optimizer == 2 * counts.total + 6 * 512 * 128
    assert estimate(config, sizes(optimizer="lion_32bit", trainable_bytes=2)).optimizer == 4 * counts.total
    assert estimate(config, sizes(optimizer="sgd")).optimizer == 0
    assert GENERATES not in estimate(config, sizes(generates=False)).phases
    asked = estimate(config, sizes(language_model=2.0**40)).phases[COMPARES]
    assert asked == 2**40 + 12 * counts.total and COMPARES not in estimate(config, sizes()).phases
    assert estimate(config, sizes(activation_bytes=2)).copies == 2 * counts.linear
    # Without Triton all 1,024 positions, and seven float32 copies and a mask of their logits.
    on_cpu = estimate(config, sizes(triton=False)).head
    assert on_cpu == 1024 * 128 * 8 + 1024 * 512 * (4 + 7 * 4 + 1) + 512 * 128 * 4
    # Packed rows: the 640 positions that are asked about, in tiles of 2^21 logits.
    on_cpu = estimate(config, sizes(triton=False, packed=True)).head
    assert on_cpu == 640 * 128 * 8 + 640 * 512 * (4 + 7 * 4 + 1) + 512 * 128 * 4
    value = estimate(config, sizes(), critic=whole_value_model(config, sizes()))
    trunk = count_parameters(config, scores=True).total
    assert value.critic == 4 * trunk and value.optimizer == 8 * (counts.total + trunk)
    lora = ModelConfig(use_peft=True, lora_r=8)
    adapter = count_parameters(config, lora).adapter
    parts = estimate(config, sizes(weight_bytes=2, linear_bytes=0.5625, trainable_bytes=2, activation_bytes=2), lora)
    assert parts.gradients == 2 * adapter and parts.optimizer == 4 * adapter
    assert parts.weights == round(2 * (counts.total - counts.linear) + 0.5625 * counts.linear + 2 * adapter)


def test_a_small_tile_stays_as_narrow_as_products_allow():
    config = tiny()
    config.vocab_size = 65536

    def tile(**options) -> int:
        whole = sizes(triton=False, completion_length=800, prompt_length=0, **options)
        return estimate(config, whole).head - 3200 * 128 * 8 - 65536 * 128 * 4

    assert tile() == 3200 * 32768 * 33 and tile(packed=True) == 3200 * 1024 * 33


def test_modules_beside_an_adapter_are_trained_in_the_type_of_the_base():
    config = tiny(tie_word_embeddings=False)
    lora = ModelConfig(use_peft=True, lora_r=8, lora_modules_to_save=["lm_head", "embed_tokens"])
    half = {"weight_bytes": 2, "linear_bytes": 2, "activation_bytes": 2, "triton": False}
    parts, alone = (
        estimate(config, sizes(**half), arguments) for arguments in (lora, ModelConfig(use_peft=True, lora_r=8))
    )
    matrix = 512 * 128
    assert parts.weights - alone.weights == parts.gradients - alone.gradients == 2 * 2 * matrix
    assert parts.optimizer - alone.optimizer == 2 * 2 * 2 * matrix
    # The head's gradient in float32; at the end the embedding's once more.
    assert parts.head - alone.head == 4 * matrix
    held = parts.weights + parts.optimizer + parts.gradients - alone.weights - alone.optimizer - alone.gradients
    assert parts.phases[ENDS_BACKWARD] - alone.phases[ENDS_BACKWARD] == held + 2 * matrix


def test_label_smoothing_keeps_its_logits_twice_while_the_fused_head_measures():
    logits, kept = torch.randn(4, 65, 512, requires_grad=True), {}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    )
    with hooks:
        LabelSmoother(0.1)({"logits": logits}, torch.zeros(4, 65, dtype=torch.long), shift_labels=True)
    whole = [tensor for tensor in kept.values() if tensor.untyped_storage().nbytes() >= 4 * 64 * 512 * 4]
    assert len(whole) == KEPT_LOGITS
    # 1,024 positions of 512 logits: on a CPU 17 bytes of each in the fused head.
    smoothed = estimate(tiny(), sizes(head_logits=True, triton=False)).head
    assert smoothed == 1024 * 128 * 8 + 1024 * 512 * (KEPT_LOGITS * 4 + 17)


def test_an_unfused_optimizer_forms_a_value_of_every_parameter():
    config = tiny()
    parts = estimate(config, sizes(updates_at_once=True))
    assert parts.phases[UPDATES] == parts.weights + parts.optimizer + 2 * parts.gradients
    assert UPDATES not in estimate(config, sizes()).phases


def test_evaluations_count_with_their_own_batches():
    config, rows = tiny(), 512
    none = estimate(config, sizes(generates=False))
    assert EVALUATES not in none.phases
    held_out = Evaluated(held_out=(Batch(rows, 0, 256),))
    evaluating = estimate(config, sizes(generates=False, evaluated=held_out))
    # No gradients: the widest values of a layer, the last states, a tile of logits.
    forward = rows * 256 * ((3 * 384 + 128) * 4 + 128 * 4) + 4096 * 512 * 4
    assert evaluating.phases[EVALUATES] == none.weights + none.optimizer + forward == evaluating.total
    answering = estimate(config, sizes(generates=False, evaluated=Evaluated(answered=(Batch(rows, 96, 160),))))
    cache = estimate(config, sizes(generated_rows=rows)).kv_cache
    assert answering.phases[EVALUATES] == none.weights + none.optimizer + cache
    read = estimate(config, sizes(generates=False, evaluated=Evaluated(read=(Batch(rows, 0, 256),))))
    assert read.phases[EVALUATES] >= rows * 256 * 512 * 12


@pytest.mark.parametrize(("strategy", "over"), [("NO_SHARD", 1), ("HYBRID_SHARD", 4), ("FULL_SHARD", 8)])
def test_fsdp1_shards_over_what_its_strategy_names(strategy, over):
    profile = Profile("", None, "FSDP", 8, num_machines=2, fsdp_version=1, strategy=strategy)
    parts = sharded(profile)
    assert parts.weights == round(4 * count_parameters(tiny()).total / over)


def sharded(profile: Profile, **options):
    sharding = sharding_of(profile, compute_bytes=2, mixed=True)
    return estimate(tiny(), sizes(sharding=sharding, activation_bytes=2, **options))


def test_what_profiles_leave_to_each_of_eight_processes():
    counts, layer = count_parameters(tiny()), count_parameters(tiny()).linear // 2
    outside = counts.total - counts.linear
    half = {"weight_bytes": 2, "linear_bytes": 2, "trainable_bytes": 2}
    ddp = sharded(Profile("", None, "MULTI_GPU", 8))
    assert (ddp.weights, ddp.gradients, ddp.buckets) == (4 * counts.total,) * 3
    # DeepSpeed casts the model itself; the optimizer has float32 weights and both moments.
    for stage, weights, gradients in ((1, 1, 1), (2, 1, 8), (3, 8, 8)):
        parts = sharded(Profile("", None, "DEEPSPEED", 8, zero_stage=stage), **half)
        assert parts.weights == round(2 * counts.total / weights)
        assert parts.gradients == round(2 * counts.total / gradients)
        assert parts.optimizer == round(12 * counts.total / 8)
        assert parts.buckets == 2 * ZERO_BUCKET
        # ZeRO-1 and -2 allocate it for a backward pass, ZeRO-3 keeps it.
        phases = parts.phases
        held = parts.weights + parts.optimizer + (parts.copies if stage == 3 else 0) + parts.kv_cache
        assert phases[GENERATES] == pytest.approx(held + (parts.buckets if stage == 3 else 0), abs=5)
        assert parts.copies == (2 * counts.total if stage == 3 else 0)
    offloads = {"offload_optimizer": True, "offload_params": True}
    offloaded = sharded(Profile("", None, "DEEPSPEED", 8, zero_stage=3, **offloads), **half)
    assert offloaded.weights == offloaded.optimizer == offloaded.gradients == 0
    # FSDP2 keeps float32 shards; two layers, embeddings and head are whole, the latter's gradient too.
    fsdp = sharded(Profile("", None, "FSDP", 8, fsdp_version=2))
    assert fsdp.weights == fsdp.gradients == round(4 * counts.total / 8)
    assert fsdp.optimizer == round(8 * counts.total / 8)
    assert fsdp.copies == min(2 * counts.total, 2 * (2 * layer + outside)) + 2 * outside
    kept = sharded(Profile("", None, "FSDP", 8, fsdp_version=2, reshard=False))
    assert kept.weights == fsdp.weights and kept.copies == 2 * counts.total


def test_a_reward_model_has_a_score_for_a_head():
    config = tiny(tie_word_embeddings=False)
    counts = count_parameters(config, scores=True)
    assert counts.total == count_parameters(config).total - 512 * 128 + 128
    assert counts.linear == count_parameters(config).linear
    # The score is trained beside the adapter: both count.
    lora = count_parameters(config, ModelConfig(use_peft=True, lora_r=8), scores=True)
    assert lora.trainable == count_parameters(config, ModelConfig(use_peft=True, lora_r=8)).trainable + 128
    assert estimate(config, sizes(scores=True, generates=False)).head == 2 * 4 * 256 * 128 * 4


def test_table_shows_every_part_and_the_peak():
    table = estimate(SMOLLM2_135M, sizes()).table()
    assert "weights              0.501 GiB" in table and "optimizer            1.002 GiB" in table
    assert "buckets" not in table and "critic" not in table
    assert table.splitlines()[-2].startswith("  peak per process ")
    # Beside what it stands for, on a terminal of 80 columns.
    assert max(map(len, table.splitlines())) <= 64


# A run of it takes seconds, and its memory is several times what the libraries take for themselves on the way.
SMALL = benchmark.Shape(hidden=384, layers=4, width=1024, heads=6, key_value_heads=3, rows=4, prompt=64, completion=128)


# What docs/memory.md says.
TOLERANCE = 0.15


@pytest.mark.parametrize("name", ["sft-checkpointing", "dpo-crossed"])
def test_estimate_is_near_the_measured_peak(name, tmp_path):
    benchmark.write_inputs(tmp_path, SMALL)
    found = benchmark.measure(name, tmp_path, SMALL)
    assert found["ratio"] == pytest.approx(1, abs=TOLERANCE), found


RECORDED = json.loads((benchmark.ROOT / "benchmarks" / "results" / "memory-cpu.json").read_text())


@pytest.fixture(scope="module")
def recorded_inputs(tmp_path_factory) -> Path:
    """Rows and configs of the recorded shape. An estimate looks at no weights: they are left out."""

    def without_weights(model: LlamaForCausalLM, folder: Path) -> None:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        save_file({}, folder / "model.safetensors")

    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", without_weights)
        benchmark.write_inputs(folder, benchmark.Shape(**RECORDED["shape"]))
    return folder


@pytest.mark.parametrize("name", RECORDED["configurations"])
def test_estimates_of_today_fit_the_recorded_peaks(name, recorded_inputs):
    """`python -m benchmarks.memory --output benchmarks/results/memory-cpu.json` records them anew."""
    configuration, recorded = benchmark.CONFIGURATIONS[name], RECORDED["configurations"][name]
    if configuration.settings.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    profile = None
    if configuration.profile is not None:
        profile = read_profile(find_profile(configuration.profile), configuration.processes)
    recipe = benchmark.write_recipe(name, recorded_inputs, benchmark.Shape(**RECORDED["shape"]))
    prepared = prepare_recipe(read_recipe(recipe, ["--use_cpu", "true"], profile=profile))
    estimated = facts.estimate_of(prepared).total / 2**20
    assert recorded["processes"] == configuration.processes
    assert estimated / recorded["measured_mib"] == pytest.approx(1, abs=TOLERANCE)
    # What the file and docs/memory.md say of the estimate is what the estimate says.
    assert estimated == pytest.approx(recorded["estimate_mib"], rel=0.01)


def test_check_shows_the_estimate_of_a_profile(tmp_path, capsys):
    benchmark.write_inputs(tmp_path, SMALL)
    recipe, shown = benchmark.write_recipe("sft", tmp_path, SMALL), []
    for options in ((), ("--accelerate", "zero3", "--num_processes", "4")):
        assert main(["check", str(recipe), *options]) == 0
        rows = [line.partition(" GiB")[0].split() for line in capsys.readouterr().out.splitlines() if " GiB" in line]
        shown.append({row[0]: float(row[-1]) for row in rows if row[0] != "peak"})
    alone, shared = shown
    # Weights and gradients a quarter each, the optimizer a quarter of twelve bytes in place of eight.
    assert shared["weights"] == pytest.approx(alone["weights"] / 4, abs=0.001)
    assert shared["gradients"] == pytest.approx(alone["gradients"] / 4, abs=0.001)
    assert shared["optimizer"] == pytest.approx(alone["optimizer"] * 3 / 8, abs=0.002)
    assert shared["copies"] == pytest.approx(alone["weights"], abs=0.001)


def test_recipes_of_80_gb_gpus_are_those_of_the_table():
    assert cluster.paper_scale().keys() == cluster.RUNS.keys()
    for name, gpus in cluster.paper_scale().items():
        assert f"--accelerate {cluster.RUNS[name].profile} --num_processes {gpus}" in find_recipe(name).read_text()


def test_cluster_figures_of_the_pretraining_by_hand():
    found = cluster.figures("pretrain/llama-1b-fineweb-edu", 8, cluster.Assumptions(utilisation=0.5))
    # 16 layers of q, o (2048 x 2048), k, v (2048 x 512) and three of 2048 x 8192; a head of 49152 x 2048.
    linear = 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert found.parameters == linear + 49152 * 2048 + (2 * 16 + 1) * 2048
    cost = found.cost
    assert cost.tokens == 128 * 4096
    forward = 2 * (linear + 49152 * 2048) + 2 * 2048 * 4096 * 16
    # Three passes and one again for gradient checkpointing, on eight GPUs at half of their peak.
    seconds = 128 * 4096 * 4 * forward / (8 * 0.5 * 989e12)
    assert cost.train_seconds == pytest.approx(seconds) and cost.generation_seconds == 0
    assert cost.gpu_hours(found.steps) == pytest.approx(8 * 19000 * seconds / 3600)
    assert cost.tokens / cost.seconds == pytest.approx(128 * 4096 / seconds)
    # Float32 weights, gradients, DDP's buckets and two moments; the copies of the linear layers in bfloat16.
    assert found.memory > 20 * found.parameters + 2 * linear
