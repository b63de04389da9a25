"""PPO against TRL 1.12's experimental PPOTrainer, the last one that TRL had: speed and learning curves.

    python -m benchmarks.ppo_against_trl speed                     # SmolLM2-135M, an untrained reward model
    python -m benchmarks.ppo_against_trl curve --task stories --model outputs/sft-stories-tiny \\
        --reward-model outputs/reward-stories-tiny --arms benchmarks/ppo_arms.yaml --json build/ppo.json
    python -m benchmarks.ppo_against_trl curve --task positive-words --json build/ppo.json \\
        --arm default --arm "branch: critic=branch critic_layers=4 critic_learning_rate=1e-3"

An arm is a name, and the settings of PPOConfig that are its own, in which MODEL and REWARD_MODEL stand for the folders
(the second for none where a rule is the reward); without `--arm` there is one, with none. `--arms FILE` reads them from
YAML. TRL 1.12 is an arm as well, unless `--no-stock`; it gets an environment of its own, `build/trl-1.12`, made at the
first call: this interpreter and its packages (the same torch, the same transformers), with only trl another.

Each arm is a process of its own in its own `.train()`, and goes one PPO update at a time: generation, scores, all
epochs. `speed` has them take turns in one run, who goes first changes, and each round gives ratios of samples per
second; the first round warms up. There are as many prompts as completions of an update, so every update works on the
same prompts. `curve` makes a run of each arm and seed, as many at once as there are cores, with one thread each. They
share the machine, so the time of `curve` is each process's own CPU time (on a GPU, where they come one after the other,
the clock's). A run is kept in `--json` as it ends, and a later call goes on with what is missing. Differences are
paired by seed; what is told as one exceeds two standard errors.

Equal on both sides: the policy's weights, prompts (the same token ids), the reward and where it is read (the last own
token), batch, mini-batches, optimizer steps, epochs, response length, temperature, coefficients, AdamW with a constant
rate, no gradient checkpointing, no clipping of gradients, precision, the adapter's shape where there is one. What
differs is how the trainers are built: the stock one trains a value model of its own, a copy of the reward model, or of
the policy with a new head where the reward is a rule (with an adapter of its own where the policy has one); it shuffles
its mini-batches anew for each epoch. On CPUs memory that is freed stays with a process of ours, as in any run
(`hpt_trl.runs.freed_memory`), and with the stock one's where `--same-allocator` says so. `positive-words` has the
prompts and the rule of its recipe, and TRL 1.12 is given the rule as a model whose hidden state is the score.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import transformers
from transformers import logging

from benchmarks import ppo_curves
from benchmarks.ppo_processes import environment, started
from benchmarks.ppo_tasks import STOCK, TASKS, Arms, Refused, prepare, read_arms, setup_of
from benchmarks.shared import hardware, write_report
from benchmarks.workers import WorkerFailed

# Of `Setup`, that both commands take from the command line.
SETTINGS = (
    *("model", "reward_model", "batch", "mini_batches", "epochs", "response"),
    *("learning_rate", "kl_coef", "vf_coef", "bf16", "lora_r", "same_allocator"),
)


def speed(arguments: argparse.Namespace, arms: Arms, folder: Path) -> None:
    """Rounds of one update each; the ratio of samples per second, each arm of ours / TRL 1.12."""
    settings = {name: getattr(arguments, name) for name in SETTINGS} | {"updates": arguments.rounds + 1}
    prepared = prepare(settings, folder, recipe=None, count=arguments.batch)
    setups = {arm: setup_of(prepared, arm, overrides, seed=0) for arm, overrides in arms.items()}
    begin = time.perf_counter()
    rounds: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        workers = {arm: stack.enter_context(started(setup, folder)) for arm, setup in setups.items()}
        for turn in range(arguments.rounds + 1):
            start = time.perf_counter()
            order = list(arms)[turn % len(arms) :] + list(arms)[: turn % len(arms)]
            figures = {arm: workers[arm].update() for arm in order}
            print(
                f"{f'round {turn}' if turn else 'warm-up'}: "
                + ", ".join(f"{arm} {arguments.batch / figures[arm]['seconds']:.3f} samples/s" for arm in arms),
                flush=True,
            )
            if turn:
                rounds.append(figures)
            now = time.perf_counter()
            if turn and arguments.minutes and now - begin + (now - start) > 60 * arguments.minutes:
                break
    sides = {}
    for arm in arms:
        ratios = [figures[STOCK]["seconds"] / figures[arm]["seconds"] for figures in rounds]
        sides[arm] = {
            "overrides": arms[arm],
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "samples_per_s": round(statistics.median(arguments.batch / found[arm]["seconds"] for found in rounds), 3),
            "tokens": round(statistics.mean(found[arm]["tokens"] for found in rounds), 1),
        }
        found = sides[arm]
        print(
            f"{arm}: {found['samples_per_s']} samples/s, {found['ratio_median']:.2f} of {STOCK} "
            f"({found['ratio_min']:.2f} to {found['ratio_max']:.2f}, {len(rounds)} rounds)"
        )
    if arguments.json:
        report = ppo_curves.read(arguments.json)
        write_report(report | {"speed": {"settings": settings, **hardware(), "arms": sides}}, arguments.json)


def curve(arguments: argparse.Namespace, arms: Arms, folder: Path) -> None:
    """Score, KL, objective and explained variance of every arm, at equal samples and at equal time."""
    task, gpu = TASKS[arguments.task], torch.cuda.is_available()
    settings = {name: getattr(arguments, name) for name in SETTINGS} | {"updates": arguments.updates}
    path = arguments.json and Path(arguments.json)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    of_all = settings | versions | {"machine": torch.cuda.get_device_name() if gpu else hardware()["machine"]}
    record = ppo_curves.Record(path, arguments.task, of_all, arms)
    prepared = prepare(settings, folder, recipe=task.recipe, count=None)
    for arm, overrides in arms.items():
        setup_of(prepared, arm, overrides, seed=0)  # told before hours are spent on the others
    seeds = list(range(arguments.seeds))
    ppo_curves.measure(record, prepared, arms, seeds, folder, processes=arguments.processes, minutes=arguments.minutes)
    clock = "seconds" if gpu else "cpu_seconds"
    summary = ppo_curves.summarize(record, arms, seeds, arguments.against, arguments.kl_coef, clock)
    if summary is None:
        print("No seed has been run with every arm yet.")
        return
    print("\n" + ppo_curves.table(summary, arguments.updates, arguments.kl_coef, clock))
    if path:
        record.summarize(summary.as_json())
        picture = path.with_name(f"{path.stem}-{arguments.task}.png")
        ppo_curves.draw(record, summary, arguments.kl_coef, clock, picture)


def parse(words: list[str] | None) -> tuple[argparse.Namespace, Arms]:
    """Reads the command line; what a task has of its own stands where nothing is said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode, run in (("speed", speed), ("curve", curve)):
        options = modes.add_parser(mode, help=run.__doc__)
        options.set_defaults(run=run)
        options.add_argument("--arm", action="append", default=[], help='"NAME: key=value …", settings of PPOConfig')
        options.add_argument("--arms", help="YAML file of arms: names, and the settings of each")
        options.add_argument("--model")
        options.add_argument("--reward-model", help="classifier of the policy's tokens; in `speed` an untrained one")
        options.add_argument("--batch", type=int, help="completions of an update")
        options.add_argument("--mini-batches", type=int, help="optimizer steps per epoch")
        options.add_argument("--epochs", type=int, default=4)
        options.add_argument("--response", type=int, help="most tokens of a completion")
        options.add_argument("--learning-rate", type=float)
        options.add_argument("--kl-coef", type=float)
        options.add_argument("--vf-coef", type=float, default=0.1)
        options.add_argument("--lora-r", type=int, help="rank of an adapter, 0: all weights are trained")
        options.add_argument("--same-allocator", action="store_true", help="freed memory stays with TRL's process too")
        options.add_argument("--bf16", action="store_true", help="under bf16 autocast instead of float32")
        options.add_argument(
            "--minutes", type=float, help="after these no seed, or no round that would end later, is begun"
        )
        options.add_argument("--json", help="put the figures into this file")
        if mode == "speed":
            options.add_argument("--rounds", type=int, default=3)
            # In `speed` the completions are to stay as they are.
            options.set_defaults(
                **{"model": "smollm2-135m", "batch": 32, "mini_batches": 2, "response": 32},
                **{"learning_rate": 1e-6, "kl_coef": 0.05, "lora_r": 0},
            )
        else:
            options.add_argument("--task", choices=list(TASKS), default="stories")
            options.add_argument("--seeds", type=int, default=6)
            options.add_argument("--updates", type=int)
            options.add_argument("--no-stock", action="store_true", help="arms of ours alone")
            options.add_argument("--against", help=f"arm that the others are compared with; by default {STOCK}")
            cores = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
            options.add_argument("--processes", type=int, default=cores, help="runs at once")
    arguments = parser.parse_args(words)
    curves = arguments.mode == "curve"
    if curves:
        task = TASKS[arguments.task]
        for name in ("model", "updates", "batch", "mini_batches", "response", "learning_rate", "kl_coef", "lora_r"):
            if getattr(arguments, name) is None:
                setattr(arguments, name, getattr(task, name))
        if task.recipe is None and None in (arguments.model, arguments.reward_model):
            parser.error(f"`--task {arguments.task}` needs `--model` and `--reward-model`")
        if task.recipe is not None and arguments.reward_model is not None:
            parser.error(f"the reward of `--task {arguments.task}` is a rule: drop `--reward-model`")
        if arguments.kl_coef <= 0:
            parser.error("`--kl-coef` must be above 0: without a reference there is no KL to compare by")
    if arguments.batch % arguments.mini_batches or arguments.epochs * arguments.mini_batches < 2:
        parser.error("`--batch` must be a multiple of `--mini-batches`, with two optimizer steps per update or more")
    ours = arguments.arm if arguments.arm or arguments.arms else ["default"]
    arms = read_arms(ours, arguments.arms, stock=not (curves and arguments.no_stock))
    if curves:
        arguments.against = arguments.against or next(iter(arms))
        if arguments.against not in arms:
            parser.error(f"`--against {arguments.against}` is no arm; there are {', '.join(arms)}")
    return arguments, arms


def main(words: list[str] | None = None) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        arguments, arms = parse(words)
        if None in arms.values():
            environment()  # before several processes ask for it at once
        with tempfile.TemporaryDirectory() as folder:
            arguments.run(arguments, arms, Path(folder))
    except (Refused, WorkerFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
