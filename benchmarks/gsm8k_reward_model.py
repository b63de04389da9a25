"""A reward model and DPO of SmolLM2-135M on real solutions of GSM8K: does it tell right from wrong?

    python -m benchmarks.gsm8k_reward_model --data path/to/example_model_solutions.jsonl \
        --output benchmarks/results/gsm8k_reward_model-cpu.json

The data is `grade_school_math/data/example_model_solutions.jsonl` of openai/grade-school-math (MIT): 1,319 questions,
each with four models' solutions labelled right or wrong. A pair is a right and a wrong solution of one question. The
questions are split first: of a held-out one there is nothing in training, and one pair of it is held out, so that the
pairs are independent. The pairs are written to `--rows` as train.jsonl and test.jsonl, on which the recipes
`reward/smollm2-135m-gsm8k` and `dpo/smollm2-135m-gsm8k` run.

What is compared, on the same held-out pairs, as the share whose right solution is preferred (a tie counts half), with
its 95 % interval (Wilson's):

    length       the shorter or the longer one, whichever is better on the training pairs
    likelihood   log-probability of the solution under the base model, as a sum or a mean over its tokens, higher or
                 lower, whichever is better on the training pairs
    reward       the score of the reward model
    dpo          the implicit reward beta * (log pi - log pi_ref)
"""

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.shared import parser_of, write_report
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.files import lines_of
from hpt_trl.methods.reward.shift import measure_shift, read_scores
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model
from hpt_trl.runs.preparation import prepare
from hpt_trl.runs.verdicts import standard_error

MODEL = "smollm2-135m"
# Of the recipes.
TEMPLATE = "{prompt}\n"
# Calculator marks, which tell nothing that the solution does not: <<48/2=24>>.
MARKS = re.compile(r"<<[^<>]*>>")
# Sequences of a forward pass: its logits are what takes the memory.
BATCH = 8

Pair = dict[str, str]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True, help="example_model_solutions.jsonl of openai/grade-school-math")
    parser.add_argument("--rows", default="outputs/gsm8k-pairs", help="folder for the pairs")
    parser.add_argument("--train-pairs", type=int, default=500)
    parser.add_argument("--held-out-pairs", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=256, help="tokens; pairs with a longer one are left out")
    parser.add_argument("--baseline-pairs", type=int, default=200, help="training pairs that the baselines choose on")
    parser.add_argument("--model", default=MODEL, help="Hub id or folder")
    parser.add_argument("--stages", nargs="*", default=["reward", "dpo"], choices=["reward", "dpo"])
    parser.add_argument("--reuse", action="store_true", help="take the stages that finished in --folder as they are")
    parser.add_argument("--rows-only", action="store_true", help="write the pairs and stop")
    parser.add_argument("--folder", default="outputs/gsm8k_reward_model")
    arguments, overrides = parser.parse_known_args()
    counts = write_rows(arguments)
    print(json.dumps(counts), flush=True)
    if arguments.rows_only:
        return
    common = ["--dataset_name", arguments.rows, "--model_name_or_path", arguments.model]
    common += ["--max_length", str(arguments.max_length), *overrides]
    report: dict[str, Any] = {
        "settings": {"model": arguments.model, "max_length": arguments.max_length, "overrides": overrides} | counts,
        "held_out": {},
    }
    # Of each pair: 1, 0.5 or 0.
    verdicts = baselines(arguments, common, report)
    for stage in arguments.stages:
        folder = Path(arguments.folder) / stage
        words = [*common, "--output_dir", str(folder), "--overwrite", "true"]
        command = [sys.executable, "-m", "hpt_trl", "run", f"{stage}/smollm2-135m-gsm8k", *words]
        if not (arguments.reuse and (folder / "results.json").is_file()):
            subprocess.run(command, check=True)
        results = json.loads((folder / "results.json").read_text())
        found = {"loss": [results[name]["held_out"]["loss"] for name in ("before", "after")]}
        if stage == "reward":
            scores = read_scores(folder) or []
            verdicts["reward"] = [preferred(line["chosen"] - line["rejected"]) for line in scores]
            found |= share(verdicts["reward"]) | {"margin": results["after"]["held_out"]["margin"]}
            shift = measure_shift(scores)
            found |= {"share_of_variance_between_prompts": shift.raw.share, "across_prompts": shift.across}
        else:
            held_out = results["after"]["held_out"]
            found |= {"accuracy": held_out["rewards/accuracies"], "margin": held_out["rewards/margins"]}
            found |= {"interval": results["after"]["held_out_intervals"]["rewards/accuracies"]}
        report["held_out"][stage] = found | {
            "steps": results["steps"],
            "minutes": results["wall_time_s"]["total"] / 60,
            "train_minutes": results["wall_time_s"]["train"] / 60,
            "training_tokens": results["tokens"]["training"],
        }
        report["hardware"] = results["hardware"]
    report["differences"] = {
        f"reward - {name}": difference(verdicts["reward"], verdicts[name])
        for name in verdicts
        if name != "reward" and "reward" in verdicts
    }
    write_report(report, arguments.output)
    print()
    for name, found in report["held_out"].items():
        how = f"  ({found['rule']})" if "rule" in found else f"  ({found['minutes']:.1f} min)"
        low, high = found["interval"]
        print(f"{name:<11} {found['accuracy']:6.1%}, 95 % interval {low:.1%} to {high:.1%}{how}")
    for name, found in report["differences"].items():
        print(f"{name:<22} {found['accuracy']:+6.1%}, standard error {found['standard_error']:.1%}")


def pairs_of(row: dict[str, Any], generator: random.Random) -> list[Pair]:
    """Every right solution of a question beside every wrong one, in random order; equal texts count once."""
    texts: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for value in row.values():
        if isinstance(value, dict):
            text = MARKS.sub("", value["solution"]).strip()
            if text:
                texts[value["is_correct"]].setdefault(text)
    prompt = row["question"].strip()
    pairs = [
        {"prompt": prompt, "chosen": right, "rejected": wrong}
        for right in texts[True]
        for wrong in texts[False]
        if right != wrong
    ]
    generator.shuffle(pairs)
    return pairs


def split_pairs(
    rows: Sequence[dict[str, Any]], train: int, held_out: int, fits: Callable[[Pair], bool]
) -> tuple[list[Pair], list[Pair]]:
    """Training pairs and held-out pairs, of different questions.

    Args:
        rows: of the data; questions without a right and a wrong solution have no pair.
        train, held_out: how many; of a held-out question one pair, of a training question a second and further one
            only after all others have had theirs.
        fits: whether a pair may be used.

    Raises:
        SystemExit: there are not so many.
    """
    generator = random.Random(0)
    questions = [pairs for row in rows if (pairs := [pair for pair in pairs_of(row, generator) if fits(pair)])]
    generator.shuffle(questions)
    rest = questions[held_out:]
    # A stable order: first everybody's first pair, then everybody's second one.
    ranked = sorted((rank, place) for place, pairs in enumerate(rest) for rank in range(len(pairs)))
    if len(questions) < held_out or len(ranked) < train:
        raise SystemExit(f"{len(questions)} questions have a pair; {len(ranked)} pairs are left for training")
    return [rest[place][rank] for rank, place in ranked[:train]], [pairs[0] for pairs in questions[:held_out]]


def write_rows(arguments: argparse.Namespace) -> dict[str, int]:
    """Writes train.jsonl and test.jsonl to `--rows`."""
    tokenizer = load_tokenizer(arguments.model)

    def fits(pair: Pair) -> bool:
        prompt = TEMPLATE.format(prompt=pair["prompt"])
        return all(
            # One token for the end.
            len(tokenizer(prompt + pair[name])["input_ids"]) < arguments.max_length
            for name in ("chosen", "rejected")
        )

    rows = [json.loads(line) for line in lines_of(arguments.data)]
    train, test = split_pairs(rows, arguments.train_pairs, arguments.held_out_pairs, fits)
    folder = Path(arguments.rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return {
        "train_pairs": len(train),
        "train_questions": len({pair["prompt"] for pair in train}),
        "held_out_pairs": len(test),
    }


def baselines(arguments: argparse.Namespace, common: list[str], report: dict[str, Any]) -> dict[str, list[float]]:
    """The verdicts of length and likelihood on the held-out pairs; their figures go into the report."""
    prepared = prepare("reward/smollm2-135m-gsm8k", [*common, "--output_dir", f"{arguments.folder}/none"])
    train = list(prepared.splits.train)[: arguments.baseline_pairs]
    test = list(prepared.splits.test or [])
    measures = [measured(pairs, prepared.tokenizer, arguments.model) for pairs in (train, test)]
    verdicts = {}
    for name, keys in (("length", ("tokens",)), ("likelihood", ("sum", "mean"))):
        # Two directions of each measure, chosen where the labels may be seen.
        rules = [(key, sign) for key in keys for sign in (1, -1)]
        found = [[[preferred(sign * gap) for gap in part[key]] for key, sign in rules] for part in measures]
        seen = [sum(values) / len(values) for values in found[0]]
        best = seen.index(max(seen))
        key, sign = rules[best]
        verdicts[name] = found[1][best]
        every = {
            f"{'higher' if s > 0 else 'lower'} {k}": sum(values) / len(values)
            for (k, s), values in zip(rules, found[1], strict=True)
        }
        rule = f"{'higher' if sign > 0 else 'lower'} {key}"
        report["held_out"][name] = share(verdicts[name]) | {
            "rule": rule,
            "training_accuracy": seen[best],
            "every_rule": every,
        }
    return verdicts


@torch.inference_mode()
def measured(pairs: Sequence[dict[str, Any]], tokenizer: Any, name: str) -> dict[str, list[float]]:
    """Of each pair, right less wrong: tokens, and the sum and mean of the tokens' log-probability under the model."""
    model = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    texts = [(pair["prompt"], pair[key]) for pair in pairs for key in ("chosen", "rejected")]
    encoded = [tokenizer(prompt + text + tokenizer.eos_token)["input_ids"] for prompt, text in texts]
    starts = [len(tokenizer(prompt)["input_ids"]) for prompt, _ in texts]
    sums = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        longest = max(len(encoded[index]) for index in chosen)
        # Padding on the right is seen by no token that counts.
        ids = torch.tensor([encoded[index] + [0] * (longest - len(encoded[index])) for index in chosen])
        ids = ids.to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logits = model(input_ids=ids).logits
        for row, index in enumerate(chosen):
            start, end = starts[index], len(encoded[index])
            logps = logits[row, start - 1 : end - 1].float().log_softmax(-1)
            sums[index] = logps.gather(1, ids[row, start:end, None]).sum().item()
    lengths = [len(ids) - start for ids, start in zip(encoded, starts, strict=True)]
    values = {
        "tokens": [float(length) for length in lengths],
        "sum": sums,
        "mean": [total / length for total, length in zip(sums, lengths, strict=True)],
    }
    return {
        key: [right - wrong for right, wrong in zip(found[::2], found[1::2], strict=True)]
        for key, found in values.items()
    }


def preferred(gap: float) -> float:
    """1 if the right solution is preferred, 0 if the wrong one is, 0.5 for a tie."""
    return 0.5 if gap == 0 else float(gap > 0)


def share(verdicts: Sequence[float]) -> dict[str, Any]:
    """The share of independent pairs that are right, with its interval."""
    return {"accuracy": fmean(verdicts), "interval": list(wilson(fmean(verdicts), len(verdicts)))}


def difference(one: Sequence[float], other: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error of the difference on the same pairs."""
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    return {"accuracy": fmean(gaps), "standard_error": standard_error(gaps)}


if __name__ == "__main__":
    main()
