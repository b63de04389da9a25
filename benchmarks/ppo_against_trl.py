"""PPO against TRL 1.12's experimental PPOTrainer, the last one that TRL had: speed and learning curves.

    python -m benchmarks.ppo_against_trl speed                     # SmolLM2-135M, an untrained reward model
    python -m benchmarks.ppo_against_trl curve --model FOLDER --reward-model FOLDER --seeds 3
    ... --json benchmarks/results/ppo_against_trl.json             # also writes the figures; curve draws a .png beside

TRL 1.12 gets an environment of its own, `build/trl-1.12`, made at the first call: this interpreter and its packages
(the same torch, the same transformers), with only trl another.

Each side is a process of its own in its own `.train()`, and goes one PPO update at a time: generation, scores, all
epochs. `speed` has them take turns in one run, who goes first alternates, and each round gives one ratio of samples
per second; the first round warms up. There are as many prompts as completions of an update, so every update of
either side works on the same prompts. `curve` runs both sides at once on each seed; its time says nothing.

Equal on both sides: the policy's weights, prompts (the same token ids), the reward model and where it is read (the
last own token), batch, mini-batches, optimizer steps, epochs, response length, temperature, coefficients, AdamW with a
constant rate, no gradient checkpointing, no clipping of gradients, precision. What differs is how the trainers are
built: the stock one trains a value model of its own (a copy of the reward model), ours by default a value head on the
policy's trunk; `--separate-value-model` gives ours the same value model. The stock one shuffles its mini-batches anew
for each epoch.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, logging

from benchmarks.ppo_workers import Setup
from hpt_trl.data.reading.sources import read_source
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.runs.curves import STYLE

ROOT = Path(__file__).resolve().parent.parent
TRL = "1.12.0"
ENVIRONMENT = ROOT / "build" / "trl-1.12"
SIDES = ("ours", "theirs")
LABELS = {"ours": "hpt-trl", "theirs": f"TRL {TRL}"}
COLORS = {"ours": "#2166ac", "theirs": "#e08214"}


def environment() -> str:
    """The interpreter of TRL 1.12's environment, which is built if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}))
    shared = sysconfig.get_path("purelib")
    # Written last: a build that was killed is made anew, and so is one of another interpreter's packages.
    link = packages / "shared.pth"
    if not (link.is_file() and link.read_text().strip() == shared):
        print(f"building {ENVIRONMENT}", flush=True)
        venv.create(ENVIRONMENT, clear=True, with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", f"trl=={TRL}"], check=True)
        link.write_text(shared + "\n")
    return str(python)


class Worker:
    """A process of `benchmarks.ppo_workers`, which is told when to go."""

    def __init__(self, python: str, setup: Setup, folder: Path, variables: dict[str, str]):
        name = f"{setup.side}-{setup.seed}"
        settings, self._log = folder / f"{name}.json", folder / f"{name}.log"
        settings.write_text(json.dumps(asdict(setup)))
        reading, writing = os.pipe()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.ppo_workers", str(settings), str(writing)],
                cwd=ROOT,
                env=os.environ | variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                text=True,
            )
        os.close(writing)
        self._reports = os.fdopen(reading)
        self._side = setup.side

    def go(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def report(self) -> dict[str, float]:
        """Waits for the update that was begun."""
        line = self._reports.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> None:
        self.close()  # its last words come after the end of its reports
        sys.exit(f"The side `{self._side}` failed:\n{self._log.read_text()[-4000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reports.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def prepare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes what both sides read: the tokenizer, the prompts and, where none is given, an untrained reward model."""
    model = resolve_model(arguments.model)
    tokenizer: Any = load_tokenizer(model)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # The stock trainer takes a completion's first padding token for its end: an EOS would not be part of it.
        others = {tokenizer.unk_token, tokenizer.bos_token} - {None, tokenizer.eos_token}
        if not others:
            sys.exit("The tokenizer's padding token is its EOS, and it has no other special token to pad with.")
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token in others else tokenizer.bos_token
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder / "tokenizer")
    reward_model = arguments.reward_model
    if reward_model is None:
        torch.manual_seed(0)
        classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        classifier.config.pad_token_id = tokenizer.pad_token_id
        reward_model = str(folder / "reward_model")
        classifier.save_pretrained(reward_model)
    (dataset, _), _ = read_source(RecipeArguments(dataset_name=arguments.prompts), seed=0)
    count = arguments.batch if arguments.mode == "speed" else len(dataset)
    if len(dataset) < arguments.batch:
        sys.exit(f"{arguments.prompts} has {len(dataset)} prompts; a batch takes {arguments.batch}.")
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in dataset[:count]["prompt"]]
    rows = [{"prompt": text, "prompt_tokens": tokenizer(text)["input_ids"]} for text in texts]
    (folder / "rows.json").write_text(json.dumps(rows))
    return {
        "model": model,
        "reward_model": reward_model,
        "tokenizer": str(folder / "tokenizer"),
        "rows": str(folder / "rows.json"),
        "output_dir": str(folder / "output"),
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        **{
            name: getattr(arguments, name)
            for name in (
                *("batch", "mini_batches", "epochs", "response", "learning_rate"),
                *("kl_coef", "vf_coef", "bf16", "separate_value_model"),
            )
        },
    }


@contextmanager
def workers(settings: dict[str, Any], folder: Path, **variables: str) -> Iterator[dict[str, Worker]]:
    """Both sides, started and waiting."""
    variables = {
        "OMP_WAIT_POLICY": "PASSIVE",  # or whoever waits for its turn would keep the cores busy
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        # The stock trainer's own Accelerator takes its precision from here alone.
        "ACCELERATE_MIXED_PRECISION": "bf16" if settings["bf16"] else "no",
        **variables,
    }
    interpreters = {"ours": sys.executable, "theirs": environment()}
    with ExitStack() as stack:
        pair = {}
        for side in SIDES:
            pair[side] = Worker(interpreters[side], Setup(side=side, **settings), folder, variables)
            stack.callback(pair[side].close)
        yield pair


def speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of one update each; the ratio of samples per second, ours / theirs."""
    settings = prepare(arguments, folder) | {"seed": 0, "updates": arguments.rounds + 1}
    begin = time.perf_counter()
    rounds: list[dict[str, Any]] = []
    with workers(settings, folder) as pair:
        for turn in range(arguments.rounds + 1):
            start = time.perf_counter()
            figures = {}
            for side in SIDES if turn % 2 else SIDES[::-1]:
                pair[side].go()
                figures[side] = pair[side].report()
            samples = {side: arguments.batch / figures[side]["seconds"] for side in SIDES}
            ratio = samples["ours"] / samples["theirs"]
            print(
                f"{f'round {turn}' if turn else 'warm-up'}: ours {samples['ours']:.3f} samples/s, "
                f"theirs {samples['theirs']:.3f}, ratio {ratio:.2f}; "
                f"tokens {figures['ours']['tokens']:.0f} and {figures['theirs']['tokens']:.0f}",
                flush=True,
            )
            if turn:
                rounds.append({"ratio": ratio, "samples_per_s": samples, "figures": figures})
            now = time.perf_counter()
            if turn and arguments.minutes and now - begin + (now - start) > 60 * arguments.minutes:
                break
    ratios = [entry["ratio"] for entry in rounds]
    result: dict[str, Any] = {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "rounds": len(rounds),
    }
    for side in SIDES:
        result[f"{side}_samples_per_s"] = round(statistics.median(r["samples_per_s"][side] for r in rounds), 3)
        result[f"{side}_tokens"] = round(statistics.mean(r["figures"][side]["tokens"] for r in rounds), 1)
    print(
        f"ours/theirs {result['ratio_median']:.2f} (min {result['ratio_min']:.2f}, max {result['ratio_max']:.2f}, "
        f"{len(rounds)} rounds)"
    )
    return result


def curve(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Mean score and KL of each update, per seed and side."""
    settings = prepare(arguments, folder) | {"updates": arguments.updates}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // 2))
    runs: dict[str, dict[str, list[list[float]]]] = {side: {"score": [], "kl": []} for side in SIDES}
    for seed in range(arguments.seeds):
        with workers(settings | {"seed": seed}, folder, OMP_NUM_THREADS=threads) as pair:
            for measures in runs.values():
                for values in measures.values():
                    values.append([])
            for _ in range(arguments.updates):
                for worker in pair.values():
                    worker.go()
                for side, worker in pair.items():
                    figures = worker.report()
                    for name, values in runs[side].items():
                        values[-1].append(round(figures[name], 5))
        print(
            f"seed {seed}: " + ", ".join(f"{side} {_last(runs[side]['score'][-1]):.3f}" for side in SIDES), flush=True
        )
    result: dict[str, Any] = {"seeds": arguments.seeds, "updates": arguments.updates}
    spreads = {}
    for side in SIDES:
        result[side] = {}
        for part, of in (("first", _first), ("last", _last)):
            means = [of(scores) for scores in runs[side]["score"]]
            spread = statistics.stdev(means) if len(means) > 1 else 0.0
            result[side][part] = {"mean": round(statistics.mean(means), 4), "spread": round(spread, 4)}
            spreads[side] = spread
        first, last = result[side]["first"], result[side]["last"]
        print(
            f"{side:6s} score {first['mean']:.3f} ± {first['spread']:.3f} in the first quarter, "
            f"{last['mean']:.3f} ± {last['spread']:.3f} in the last"
        )
    combined = math.hypot(*spreads.values())
    difference = result["ours"]["last"]["mean"] - result["theirs"]["last"]["mean"]
    result |= {"difference": round(difference, 4), "combined_spread": round(combined, 4)}
    result["within_spread"] = abs(difference) <= combined
    print(
        f"last quarters differ by {difference:+.3f}, {'within' if result['within_spread'] else 'outside'} the combined "
        f"spread of {combined:.3f} over {arguments.seeds} seeds"
    )
    return result | {"runs": runs}


def _first(values: list[float]) -> float:
    return statistics.mean(values[: max(1, len(values) // 4)])


def _last(values: list[float]) -> float:
    return statistics.mean(values[-max(1, len(values) // 4) :])


def draw(runs: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Each seed pale, the mean over seeds on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"score": ("Score of the reward model", ""), "kl": ("Distance from the reference", "KL (nats)")}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11.2, 3.8), layout="constrained")
        for axis, (name, (title, unit)) in zip(axes, titles.items(), strict=True):
            axis.set(title=title, xlabel="PPO update", ylabel=unit)
            axis.grid(True, color="#e6e6e6", linewidth=0.8)
            axis.set_axisbelow(True)
            for side in SIDES:
                seeds = runs[side][name]
                updates = range(1, len(seeds[0]) + 1)
                for values in seeds:
                    axis.plot(updates, values, color=COLORS[side], alpha=0.25, linewidth=0.8)
                means = [statistics.mean(values) for values in zip(*seeds, strict=True)]
                axis.plot(updates, means, color=COLORS[side], linewidth=1.8, label=LABELS[side])
            axis.legend(loc="best")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def write(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Puts the figures into the JSON file, in place of those of the same measurement."""
    path = Path(arguments.json)
    report = json.loads(path.read_text()) if path.is_file() else {}
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    settings = {key: value for key, value in vars(arguments).items() if key not in ("mode", "json", "minutes")}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "theirs": f"trl {TRL}"}
    key = arguments.mode + (", separate value model" if arguments.separate_value_model else "")
    report[key] = {"settings": settings, "hardware": hardware, **versions, **result}
    path.write_text(json.dumps(report, indent=2) + "\n")
    if "runs" in result:
        draw(result["runs"], path.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode, run in (("speed", speed), ("curve", curve)):
        measures_speed = mode == "speed"
        options = modes.add_parser(mode, help=run.__doc__)
        options.set_defaults(run=run)
        options.add_argument("--model", default="smollm2-135m", required=not measures_speed)
        options.add_argument("--reward-model", help="classifier of the policy's tokens; by default an untrained one")
        options.add_argument("--prompts", default="stories:prompts", help="dataset with a column `prompt`")
        if measures_speed:
            options.add_argument("--rounds", type=int, default=3)
            options.add_argument("--minutes", type=float, help="begin no round that would end later")
        else:
            options.add_argument("--seeds", type=int, default=3)
            options.add_argument("--updates", type=int, default=60)
        options.add_argument("--batch", type=int, default=32 if measures_speed else 64)
        options.add_argument("--mini-batches", type=int, default=2, help="optimizer steps per epoch")
        options.add_argument("--epochs", type=int, default=4)
        options.add_argument("--response", type=int, default=32 if measures_speed else 48, help="most tokens of one")
        # In `speed` the completions are to stay as they are.
        options.add_argument("--learning-rate", type=float, default=1e-6 if measures_speed else 1e-4)
        options.add_argument("--kl-coef", type=float, default=0.05)
        options.add_argument("--vf-coef", type=float, default=0.1)
        options.add_argument("--bf16", action="store_true", help="both under bf16 autocast instead of float32")
        options.add_argument("--separate-value-model", action="store_true", help="for ours too")
        options.add_argument("--json", help="put the figures into this file")
    arguments = parser.parse_args()
    run = vars(arguments).pop("run")
    if arguments.batch % arguments.mini_batches or arguments.epochs * arguments.mini_batches < 2:
        parser.error("`--batch` must be a multiple of `--mini-batches`, with two optimizer steps per update or more")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, Path(folder))
    if arguments.json:
        write(arguments, result)


if __name__ == "__main__":
    main()
