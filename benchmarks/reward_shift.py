"""What a shift of the reward from prompt to prompt does to PPO, and what centring per prompt does about it.

    python -m benchmarks.reward_shift --output benchmarks/results/reward_shift-cpu.json \
        --picture benchmarks/results/reward_shift.png

A reward model is trained on differences, so each prompt's scores may have a shift of their own (docs/reward.md). Here
the reward is known: the share of five cheerful words that a story brings. To it a random number is added for every
prompt, normal, with a standard deviation of `--shifts` times the spread of the true reward inside a prompt, measured
before the training. Each size is trained with the scores as they are and with `score_centering: prompt`, everything
else equal (4 completions per prompt in both, advantages whitened, a learned critic); the true reward is what is drawn.
With the defaults the policy meets a prompt about once, so that the critic cannot learn its shift by heart; fewer
`--prompts` let it.

The small Llama is made first, by `pretrain/stories-tiny` on stories with their prompts, and kept in `--folder`.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from benchmarks.shared import parser_of, write_report
from hpt_trl import PPOConfig, PPOTrainer
from hpt_trl.data.stories import stories
from hpt_trl.data.story_grammar import CHEERFUL, CHEERFUL_WANTED
from hpt_trl.methods.reward.shift import spread
from hpt_trl.runs import runner
from hpt_trl.runs.curves import STYLE

GENERATIONS = 4
NEW_TOKENS = 32
CENTRINGS = ("none", "prompt")
# Updates that the closing figure is a mean of.
LAST = 10


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shifts", nargs="+", type=float, default=[0, 3, 10], help="in spreads inside a prompt")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=512, help="different prompts, each with its shift")
    parser.add_argument("--completions", type=int, default=64, help="per update")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--pretraining_steps", type=int, default=150)
    parser.add_argument("--folder", default="outputs/reward_shift")
    parser.add_argument("--picture", help="draw the curves here (PNG)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    model = small_model(Path(arguments.folder), arguments.pretraining_steps)
    prompts = [row["prompt"] for row in stories("prompts", {"size": arguments.prompts, "test_size": 0}, seed=0)[0]]
    within = inside_spread(model, prompts[:64])
    print(f"true reward: spread inside a prompt {within:.3f}", flush=True)
    runs = []
    for seed in arguments.seeds:
        for size in arguments.shifts:
            for centring in CENTRINGS:
                runs.append(trained(model, prompts, size, within, centring, seed, arguments))
                print(json.dumps({key: value for key, value in runs[-1].items() if key != "curve"}), flush=True)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output", "picture", "folder")}
    report = {
        "settings": settings | {"generations": GENERATIONS, "max_completion_length": NEW_TOKENS},
        "spread_inside_a_prompt": within,
        "conditions": [condition(runs, size, centring) for size in arguments.shifts for centring in CENTRINGS],
        "runs": runs,
        "cpu_threads": torch.get_num_threads(),
        "minutes": (time.perf_counter() - started) / 60,
    }
    write_report(report, arguments.output)
    if arguments.picture:
        draw(runs, Path(arguments.picture))
    for found in report["conditions"]:
        print(
            f"shift {found['shift']:>4g} x, score_centering {found['score_centering']:<6}: true reward "
            f"{found['first']:.3f} -> {found['last']:.3f} ({', '.join(f'{value:.3f}' for value in found['per_seed'])})"
            f", explained variance {found['explained_variance']:.2f}"
        )


def small_model(folder: Path, steps: int) -> str:
    """Folder of a small Llama that writes stories on prompts; trained where it is not there yet."""
    target = folder / f"model-{steps}"
    if not (target / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows, _ = stories("demonstrations", {"size": 12000, "test_size": 0}, seed=0)
        data = folder / "texts.jsonl"
        data.write_text("".join(json.dumps({"text": row["prompt"] + row["completion"]}) + "\n" for row in rows))
        overrides = ["--dataset_name", str(data), "--dataset_options", "null", "--test_split_size", "200"]
        overrides += ["--max_steps", str(steps), "--output_dir", str(target), "--overwrite", "true"]
        runner.run("pretrain/stories-tiny", overrides)
    return str(target)


def cheerful_words(completions: list[str], **_: Any) -> list[float]:
    """The true reward: different cheerful words, up to five, as a share of five."""
    found = [len(CHEERFUL & set(text.lower().replace(".", " ").split())) for text in completions]
    return [min(count, CHEERFUL_WANTED) / CHEERFUL_WANTED for count in found]


def prompt_shift(completions: list[str], shift: list[float], **_: Any) -> list[float]:
    """What a reward model may add to all scores of a prompt."""
    return shift


def inside_spread(folder: str, prompts: list[str]) -> float:
    """Standard deviation of the true reward over the untrained policy's completions of one prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    sampled = model.generate(
        **batch,
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW_TOKENS,
        num_return_sequences=GENERATIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(sampled[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
    rewards = cheerful_words(texts)
    return spread([rewards[i : i + GENERATIONS] for i in range(0, len(rewards), GENERATIONS)]).within


def trained(
    model: str,
    prompts: list[str],
    size: float,
    within: float,
    centring: str,
    seed: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One PPO run: its true reward at every update, and how well its critic explains the returns in the end."""
    generator = random.Random(f"{seed} shift")
    rows = [{"prompt": prompt, "shift": size * within * generator.gauss(0, 1)} for prompt in prompts]
    config = PPOConfig(
        str(Path(arguments.folder) / "runs"),
        num_generations=GENERATIONS,
        score_centering=centring,
        per_device_train_batch_size=arguments.completions,
        gradient_accumulation_steps=1,
        generation_batch_size=arguments.completions,
        num_iterations=2,
        max_completion_length=NEW_TOKENS,
        kl_coef=0.02,
        vf_coef=0.5,
        # The clip range is in units of the reward, which the shift multiplies: it would hold the critic back.
        cliprange_value=None,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="constant",
        # Optimizer steps: two PPO epochs each.
        max_steps=2 * arguments.updates,
        logging_steps=2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    started = time.perf_counter()
    trainer = PPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        [cheerful_words, prompt_shift],
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "rewards/cheerful_words/mean" in line]
    curve = [line["rewards/cheerful_words/mean"] for line in logged]
    explained = [line["ppo/explained_variance"] for line in logged]
    return {
        "shift": size,
        "score_centering": centring,
        "seed": seed,
        "first": curve[0],
        "last": _mean(curve[-LAST:]),
        "explained_variance": _mean(explained[-LAST:]),
        "kl": _mean([line["ppo/kl"] for line in logged][-LAST:]),
        "seconds": time.perf_counter() - started,
        "curve": [round(value, 4) for value in curve],
    }


def condition(runs: list[dict[str, Any]], size: float, centring: str) -> dict[str, Any]:
    """The runs of one condition together."""
    found = [run for run in runs if run["shift"] == size and run["score_centering"] == centring]
    return {
        "shift": size,
        "score_centering": centring,
        **{key: _mean([run[key] for run in found]) for key in ("first", "last", "explained_variance")},
        "per_seed": [run["last"] for run in found],
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """The true reward over the updates: one panel per size of the shift, one colour per remedy, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    sizes = sorted({run["shift"] for run in runs})
    colors = {"none": ("#b2182b", "scores as they are"), "prompt": ("#2166ac", "score_centering: prompt")}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(sizes), figsize=(4.4 * len(sizes), 3.6), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, size in zip(axes.flat, sizes, strict=True):
            for centring, (color, label) in colors.items():
                curves = [run["curve"] for run in runs if run["shift"] == size and run["score_centering"] == centring]
                for curve in curves:
                    axis.plot(range(1, len(curve) + 1), curve, color=color, alpha=0.25, linewidth=0.9)
                middle = [_mean(list(values)) for values in zip(*curves, strict=True)]
                smooth = [_mean(middle[max(0, i - 2) : i + 3]) for i in range(len(middle))]
                axis.plot(range(1, len(smooth) + 1), smooth, color=color, linewidth=2, label=label)
            axis.set_title("No shift" if size == 0 else f"Shift of {size:g} x the spread inside a prompt")
            axis.set_xlabel("update")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(True, color="#e6e6e6", linewidth=0.8)
        axes[0][0].set_ylabel("true reward of the rollouts")
        axes[0][0].legend(loc="best")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(temporary, dpi=150, format="png")
        plt.close(figure)
    os.replace(temporary, path)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
