"""Memory, speed and cost of the paper-scale recipes on paper: computed, not measured.

    python -m benchmarks.cluster                          # the table of docs/memory.md, in Markdown
    python -m benchmarks.cluster --utilisation 0.3 --mean_completion 4096

For each recipe whose `# Hardware:` names GPUs with 80 GB: memory per GPU by `hpt_trl.planning.memory` under its
profile, and time by this model of an H100 SXM (NVIDIA's data sheet: 989 TFLOPS in dense bfloat16, 3.35 TB/s, 80 GB):

    a forward pass      2 FLOPs per parameter of the linear layers, the head among them, and token, and in each layer
                        2 x query width x row length for attention (causal: half of the square)
    a training step     3 forward passes, 2 over frozen weights (LoRA), one more with gradient checkpointing, of every
                        row at --utilisation of the peak; heads for future tokens are a layer and a head each, trained
                        whole; a critic reads two solutions of a pair
    scoring             1 forward pass: old log-probabilities of rollouts that are trained in several steps, and the
                        reference's losses or the value model's values, once for the corpus
    generation          of each new token the weights and the row's KV cache, read at --bandwidth of the memory's;
                        rows at once: as many as the KV cache of vLLM's share of the memory holds, at most a GPU's part
                        of the batch; prompts at the training's speed

Left out, so that real runs take longer: communication, the optimizer's step, data, rewards, weight sync, evaluation,
checkpoints, and the tail of a generation, when few rows are left. Left in, so that HPT takes less: the rows that it
drops. Lengths that no recipe bounds are assumptions, and options of this script.
"""

import argparse
import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning import memory, memory_settings
from hpt_trl.recipes.bundled import bundled_recipes, find_recipe, recipe_name
from hpt_trl.recipes.profiles import find_profile, read_profile
from hpt_trl.recipes.recipe import Recipe
from hpt_trl.recipes.resolving import read_recipe

PEAK_FLOPS, BANDWIDTH, GPU_BYTES = 989e12, 3.35e12, 80e9

# The models' published configs, as far as memory and FLOPs depend on them.
QWEN_1_5B = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN_7B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32000}
TINYLLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
SHEARED_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "tie_word_embeddings": False,
}
LLAMA_2_7B = LLAMA_8B | {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32}


@dataclass(frozen=True)
class Run:
    """What a recipe leaves open.

    Attributes:
        profile: of `accelerate_configs/`, as the recipe's command has it.
        model: fields of the config; of a new model the recipe's own, with the tokenizer's size.
        steps: optimizer steps, where they follow from the data.
        scored_by: fields of the config of the model that scores the corpus once.
    """

    profile: str
    model: dict[str, Any]
    steps: int | None = None
    scored_by: dict[str, Any] | None = None


RUNS = {
    "hybrid/qwen2.5-math-1.5b-openr1": Run("multi_gpu", QWEN_1_5B),
    "hybrid/qwen2.5-math-7b-openr1": Run("zero3", QWEN_7B),
    "hybrid/llama-3.1-8b-openr1": Run("zero3", LLAMA_8B),
    # OpenWebMath has 14.7 billion tokens, a step about a million.
    "rho1/tinyllama-1.1b-openwebmath": Run("multi_gpu", TINYLLAMA, 14000, TINYLLAMA),
    "rho1/mistral-7b-openwebmath": Run("zero3", MISTRAL_7B, 14000, MISTRAL_7B),
    # 200,000 rows twice, 32 a step.
    "ref_tuning/sheared-llama-2.7b-codecontests": Run("fsdp2", SHEARED_2_7B, 12500),
    # 200,000 solutions once, 96 a step; pairs, 24 a step.
    "mtp/baseline-7b-codecontests": Run("fsdp2", LLAMA_2_7B, 2084),
    "mtp/verifiable-7b-codecontests": Run("fsdp2", LLAMA_2_7B, 2084, SHEARED_2_7B),
    "mtp/shuffled-7b-codecontests": Run("fsdp2", LLAMA_2_7B, 2084, SHEARED_2_7B),
    "mtp/random-matched-7b-codecontests": Run("fsdp2", LLAMA_2_7B, 2084),
    "mtp/rho1-7b-codecontests": Run("fsdp2", LLAMA_2_7B, 2084, SHEARED_2_7B),
    "critic/sheared-llama-2.7b-codecontests": Run("fsdp2", SHEARED_2_7B, 8334),
    # 10 billion tokens, 524,288 a step.
    "pretrain/llama-1b-fineweb-edu": Run("multi_gpu", {"vocab_size": 49152}, 19000),
}


@dataclass(frozen=True)
class Assumptions:
    """What no recipe says."""

    utilisation: float = 0.4  # of the peak FLOPs, over all that is computed
    bandwidth: float = 0.6  # of the memory's bandwidth, while generating
    longest_prompt: int = 1024  # tokens; HPT's official preparation leaves longer ones out
    mean_prompt: int = 256
    mean_completion: int = 2048
    mean_row: int = 1024  # of ref-tuning, padding included


@dataclass(frozen=True)
class Figures:
    """What a recipe comes to on its GPUs.

    Attributes:
        gpus: number of them.
        parameters: of the model.
        memory: bytes per GPU by the estimate, vLLM's share not included.
        vllm: bytes per GPU that vLLM takes for itself.
        steps: optimizer steps.
        tokens: trained tokens of a step.
        train_seconds: of a step, scoring included.
        generation_seconds: of a step; its part of a generation.
        scoring_hours: once, before the training.
    """

    gpus: int
    parameters: int
    memory: int
    vllm: float
    steps: int
    tokens: int
    train_seconds: float
    generation_seconds: float
    scoring_hours: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / (self.train_seconds + self.generation_seconds)

    @property
    def gpu_hours(self) -> float:
        hours = self.steps * (self.train_seconds + self.generation_seconds) / 3600 + self.scoring_hours
        return hours * self.gpus


def paper_scale() -> dict[str, int]:
    """Returns the bundled recipes whose hardware is GPUs with 80 GB, and how many of them.

    Those in an environment are left out: how long contexts are, and how many images they hold, follows from the model.
    """
    found = {}
    for path in bundled_recipes():
        text = path.read_text(encoding="utf-8")
        line = re.search(r"^# Hardware: (\d+) GPUs? with 80 GB", text, re.MULTILINE)
        if line and not re.search("^environment:", text, re.MULTILINE):
            found[recipe_name(path)] = int(line[1])
    return found


def forward_flops(config: Any, length: int) -> float:
    """FLOPs of a forward pass per token of a row of some length."""
    counts = count_parameters(config)
    head = config.vocab_size * config.hidden_size
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = head_width * config.num_attention_heads
    return 2 * (counts.linear + head) + 2 * queries * length * config.num_hidden_layers


def config_of(run: Run, recipe: Recipe) -> Any:
    from transformers import CONFIG_MAPPING

    own = getattr(recipe.arguments, "model_config", None) or {}
    fields = own | run.model
    kind = fields.pop("model_type")
    return CONFIG_MAPPING[kind](**fields)


def figures(name: str, gpus: int, assumed: Assumptions) -> Figures:
    """Computes a recipe's figures.

    Raises:
        KeyError: a recipe that `RUNS` does not have.
    """
    run = RUNS[name]
    profile = read_profile(find_profile(run.profile), num_processes=gpus)
    rl = name.startswith("hybrid/")
    # Read on a machine without vLLM as well; its share of the memory is added below.
    recipe = read_recipe(find_recipe(name), ["--vllm", "auto"] if rl else [], profile=profile)
    settings, config = recipe.config, config_of(run, recipe)
    longest = assumed.longest_prompt if rl else settings.max_length
    sizes = memory_settings.sizes_of(recipe, config, longest)
    sizes = dataclasses.replace(sizes, triton=True, generates=False)
    estimate = memory.estimate(config, sizes, recipe.model_args)
    flops = gpus * PEAK_FLOPS * assumed.utilisation

    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * gpus
    # Of a pair both answers.
    rows *= 2 if recipe.stage.scores else 1
    if rl:
        length = assumed.mean_prompt + assumed.mean_completion
    else:
        length = settings.max_length if recipe.setting("packing", False) else assumed.mean_row
    tokens, forward = rows * length, forward_flops(config, length)
    passes = (2 if recipe.model_args.use_peft else 3) + settings.gradient_checkpointing
    heads = recipe.setting("n_future_tokens", 1) - 1
    further = heads * _of_head(config, length) * (3 + settings.gradient_checkpointing)
    steps = settings.max_steps if settings.max_steps > 0 else int(run.steps or 0)
    vllm = generation = 0.0
    if rl:
        passes += 1
        vllm = settings.vllm_gpu_memory_utilization * GPU_BYTES
        generation = rows / gpus * _completion_seconds(config, vllm, sizes.generated_rows, assumed)
        generation += rows * assumed.mean_prompt * forward_flops(config, assumed.mean_prompt) / flops
    return Figures(
        gpus=gpus,
        parameters=count_parameters(config).total,
        memory=estimate.total,
        vllm=vllm,
        steps=steps,
        tokens=tokens,
        train_seconds=tokens * (passes * forward + further) / flops,
        generation_seconds=generation,
        scoring_hours=steps * tokens * _scoring(run, length) / flops / 3600,
    )


def _of_head(config: Any, length: int) -> float:
    """FLOPs of a forward pass per token of a head for future tokens: a layer, and the output embeddings."""
    head = 2 * config.vocab_size * config.hidden_size
    return (forward_flops(config, length) - head) / config.num_hidden_layers + head


def _scoring(run: Run, length: int) -> float:
    """FLOPs per token of the model that scores the corpus."""
    if run.scored_by is None:
        return 0.0
    from transformers import CONFIG_MAPPING

    fields = dict(run.scored_by)
    return forward_flops(CONFIG_MAPPING[fields.pop("model_type")](**fields), length)


def _completion_seconds(config: Any, share: float, rows: int, assumed: Assumptions) -> float:
    """Seconds of a GPU for a completion, of `rows` that it generates, with `share` bytes for weights and KV cache."""
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Keys and values of a token in bfloat16.
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width * 2
    weights = 2 * count_parameters(config).total
    # Half of a completion is there on average.
    mean = assumed.mean_prompt + assumed.mean_completion / 2
    at_once = min(rows, (share - weights) / (cache * mean))
    step = (weights + at_once * mean * cache) / (BANDWIDTH * assumed.bandwidth)
    return assumed.mean_completion * step / at_once


def table(assumed: Assumptions) -> str:
    """The figures of all recipes in Markdown."""
    lines = [
        "| Recipe | GPUs | Profile | Parameters | Memory per GPU | Tokens/s | Step | Steps | GPU hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, gpus in paper_scale().items():
        found = figures(name, gpus, assumed)
        held = found.memory + found.vllm
        parts = f" ({found.memory / 1e9:.0f} + {found.vllm / 1e9:.0f} of vLLM)" if found.vllm else ""
        step = f"{found.train_seconds + found.generation_seconds:.1f} s"
        if found.generation_seconds:
            step += f" ({found.generation_seconds:.1f} s generating)"
        lines.append(
            f"| `{name}` | {gpus} x H100 80 GB | {RUNS[name].profile} | {found.parameters / 1e9:.2f}B "
            f"| {held / 1e9:.0f} GB{parts}{'' if held < GPU_BYTES else ', **does not fit**'} "
            f"| {found.tokens_per_second:,.0f} | {step} | {found.steps:,} | {found.gpu_hours:,.0f} |"
        )
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    assumed = Assumptions(**vars(parser.parse_args(words)))
    print(table(assumed))
    said = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in dataclasses.asdict(assumed).items())
    print(f"\nComputed, not measured. Assumed: {said}.")


if __name__ == "__main__":
    main()
