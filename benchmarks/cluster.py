"""Memory, speed and cost of the paper-scale recipes on paper: computed, not measured.

    python -m benchmarks.cluster                          # the table of docs/memory.md, in Markdown
    python -m benchmarks.cluster --utilisation 0.3 --mean_completion 4096

For each recipe whose `# Hardware:` names GPUs with 80 GB: memory per GPU by `hpt_trl.planning.memory` under its
profile, and time by the model of an H100 SXM of `hpt_trl.planning.cost`, which says what it counts and leaves out.
Lengths that no recipe bounds are assumptions, and options of this script.
"""

import argparse
import dataclasses
import re
from dataclasses import dataclass

from hpt_trl.models.parameters import count_parameters
from hpt_trl.planning import memory
from hpt_trl.planning.cost import GPU_BYTES, Assumptions, Cost, cost_of
from hpt_trl.planning.known_models import known_config
from hpt_trl.planning.on_paper import config_on_paper, sizes_on_paper
from hpt_trl.recipes.bundled import bundled_recipes, find_recipe, recipe_name
from hpt_trl.recipes.profiles import find_profile, read_profile
from hpt_trl.recipes.resolving import read_recipe


@dataclass(frozen=True)
class Run:
    """What a recipe leaves open.

    Attributes:
        profile: of `accelerate_configs/`, as the recipe's command has it.
        steps: optimizer steps, where they follow from the data.
        scored_by: the model that scores the corpus once.
    """

    profile: str
    steps: int | None = None
    scored_by: str | None = None


SHEARED = "princeton-nlp/Sheared-LLaMA-2.7B"
RUNS = {
    "hybrid/qwen2.5-math-1.5b-openr1": Run("multi_gpu"),
    "hybrid/qwen2.5-math-7b-openr1": Run("zero3"),
    "hybrid/llama-3.1-8b-openr1": Run("zero3"),
    # OpenWebMath has 14.7 billion tokens, a step about a million.
    "rho1/tinyllama-1.1b-openwebmath": Run("multi_gpu", 14000, "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"),
    "rho1/mistral-7b-openwebmath": Run("zero3", 14000, "mistralai/Mistral-7B-v0.1"),
    # 200,000 rows twice, 32 a step.
    "ref_tuning/sheared-llama-2.7b-codecontests": Run("fsdp2", 12500),
    # 200,000 solutions once, 96 a step; pairs, 24 a step.
    "mtp/baseline-7b-codecontests": Run("fsdp2", 2084),
    "mtp/verifiable-7b-codecontests": Run("fsdp2", 2084, SHEARED),
    "mtp/shuffled-7b-codecontests": Run("fsdp2", 2084, SHEARED),
    "mtp/random-matched-7b-codecontests": Run("fsdp2", 2084),
    "mtp/rho1-7b-codecontests": Run("fsdp2", 2084, SHEARED),
    "critic/sheared-llama-2.7b-codecontests": Run("fsdp2", 8334),
    # 10 billion tokens, 524,288 a step.
    "pretrain/llama-1b-fineweb-edu": Run("multi_gpu", 19000),
}


@dataclass(frozen=True)
class Figures:
    """What a recipe comes to on its GPUs.

    Attributes:
        parameters: of the model.
        memory: bytes per GPU by the estimate, vLLM's share not included.
        vllm: bytes per GPU that vLLM takes for itself.
        steps: optimizer steps.
        cost: of a step.
    """

    parameters: int
    memory: int
    vllm: float
    steps: int
    cost: Cost


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


def figures(name: str, gpus: int, assumed: Assumptions) -> Figures:
    """Computes a recipe's figures.

    Raises:
        KeyError: a recipe that `RUNS` does not have.
    """
    run = RUNS[name]
    profile = read_profile(find_profile(run.profile), num_processes=gpus)
    recipe = read_recipe(find_recipe(name), profile=profile)
    config, _ = config_on_paper(recipe)
    sizes = sizes_on_paper(recipe, config, assumed)
    settings = recipe.config
    scored_by = None if run.scored_by is None else known_config(run.scored_by)
    return Figures(
        parameters=count_parameters(config).total,
        memory=memory.estimate(config, sizes, recipe.model_args).total,
        vllm=settings.vllm_gpu_memory_utilization * GPU_BYTES if recipe.setting("use_vllm") else 0.0,
        steps=settings.max_steps if settings.max_steps > 0 else int(run.steps or 0),
        cost=cost_of(recipe, config, assumed, generated_rows=sizes.generated_rows, scored_by=scored_by),
    )


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
        cost = found.cost
        step = f"{cost.seconds:.1f} s"
        if cost.generation_seconds:
            step += f" ({cost.generation_seconds:.1f} s generating)"
        lines.append(
            f"| `{name}` | {gpus} x H100 80 GB | {RUNS[name].profile} | {found.parameters / 1e9:.2f}B "
            f"| {held / 1e9:.0f} GB{parts}{'' if held < GPU_BYTES else ', **does not fit**'} "
            f"| {cost.tokens / cost.seconds:,.0f} | {step} | {found.steps:,} | {cost.gpu_hours(found.steps):,.0f} |"
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
