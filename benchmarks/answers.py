r"""Answers judged in a second by `math_answer`, beside math-verify alone in this process with its own time-outs.

    python -m benchmarks.answers --answers 10000 --output benchmarks/results/answers-cpu.json

A batch as training has it: golds in groups of eight completions, half of the completions right. Of the golds 60 % are
plain numbers, 40 % LaTeX; of the right answers to LaTeX two thirds are written in another way than the gold, so that
sympy has to decide, and so it has for wrong expressions. Both sides read the same completions; they take turns on
parts of the batch, and each keeps what it knows from part to part. Printed: answers per second of either side, their
ratio (above 1: `math_answer` is faster), and the share of the answers that went to sympy.
"""

import argparse
import json
import logging
import os
import platform
import random
import time
from pathlib import Path

from math_verify import parse, verify

from hpt_trl.data.final_answers import final_answer
from hpt_trl.rewards.functions import math_answer
from hpt_trl.rewards.mathcheck import equal_answers, needs_sympy

GROUP = 8
PARTS = 10


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--answers", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--output", type=Path)
    options = arguments.parse_args()
    logging.disable(logging.WARNING)

    golds, completions, right = batch(options.answers, random.Random(options.seed))
    # Neither side pays for its imports.
    equal_answers("x+1", "1+x")
    alone(["x+1"], ["\\boxed{1+x}"])
    seconds, agreed = {"math_answer": 0.0, "math_verify": 0.0}, {"math_answer": 0, "math_verify": 0}
    size = -(-len(golds) // PARTS)
    for part in range(0, len(golds), size):
        rows = slice(part, part + size)
        for side in ("math_answer", "math_verify") if (part // size) % 2 else ("math_verify", "math_answer"):
            start = time.perf_counter()
            if side == "math_answer":
                verdicts = [bool(value) for value in math_answer(completions[rows], golds[rows])]
            else:
                verdicts = alone(golds[rows], completions[rows])
            seconds[side] += time.perf_counter() - start
            agreed[side] += sum(one == two for one, two in zip(verdicts, right[rows], strict=True))
    asked = sum(needs_sympy(gold, final_answer(text) or "") for gold, text in zip(golds, completions, strict=True))
    results = {
        "answers": len(golds),
        "share_to_sympy": round(asked / len(golds), 3),
        "answers_per_second": {side: round(len(golds) / spent, 1) for side, spent in seconds.items()},
        "ratio": round(seconds["math_verify"] / seconds["math_answer"], 2),
        "judged_rightly": {side: round(count / len(golds), 4) for side, count in agreed.items()},
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "seed": options.seed,
    }
    print(json.dumps(results, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def alone(golds: list[str], completions: list[str]) -> list[bool]:
    """math-verify as its README has it, on the whole completion."""
    return [
        verify(parse(f"\\boxed{{{gold}}}"), parse(completion))
        for gold, completion in zip(golds, completions, strict=True)
    ]


def batch(answers: int, rng: random.Random) -> tuple[list[str], list[str], list[bool]]:
    """Golds, completions, and whether each completion is right."""
    golds, completions, right = [], [], []
    for _ in range(-(-answers // GROUP)):
        gold, same, other, wrong = number(rng) if rng.random() < 0.6 else expression(rng)
        for _ in range(GROUP):
            correct = rng.random() < 0.5
            answer = (same if rng.random() < 1 / 3 else other) if correct else wrong
            form = rng.choice(["So the answer is \\boxed{{{}}}.", "We add.\n#### {}"])
            golds.append(gold)
            completions.append(form.format(answer))
            right.append(correct)
    return golds[:answers], completions[:answers], right[:answers]


def number(rng: random.Random) -> tuple[str, str, str, str]:
    """A number, written as the gold, in another way, and another number."""
    value = rng.randint(-20_000, 20_000)
    return str(value), str(value), f"{value:,}", str(value + rng.randint(1, 9))


def expression(rng: random.Random) -> tuple[str, str, str, str]:
    """The same of LaTeX: fractions, surds, polynomials, points, intervals."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
    fraction, surd, polynomial = rf"\frac{{{a}}}{{{b}}}", rf"{a}\sqrt{{{b}}}", f"x^2+{a + b}x+{a * b}"
    kinds = (
        (fraction, fraction, rf"\dfrac{{{a * c}}}{{{b * c}}}", rf"\frac{{{a + 1}}}{{{b}}}"),
        (surd, surd, rf"\sqrt{{{a * a * b}}}", rf"{a + 1}\sqrt{{{b}}}"),
        (polynomial, polynomial, f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b + 1}"),
        (f"({a}, {b})", f"({a},{b})", rf"\left({a},\ {b}.0\right)", f"({b}, {a + 100})"),
        (f"[{a}, {a + b}]", f"[{a},{a + b}]", rf"{a} \le x \le {a + b}", f"({a}, {a + b})"),
    )
    return rng.choice(kinds)


if __name__ == "__main__":
    main()
