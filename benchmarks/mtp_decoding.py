"""Self-speculative decoding beside greedy decoding and prompt lookup, on a model with trained heads.

    hpt-trl run mtp/smollm2-135m-gsm8k --dataset_name path/to/gsm8k_train.jsonl --dataset_config null
    python -m benchmarks.mtp_decoding --model outputs/mtp-smollm2-135m-gsm8k --prompts path/to/gsm8k_train.jsonl \
        --column question --template '{prompt}\n' --skip 7000

Three sides answer the same prompts, one at a time, in turns:

    greedy      plain decoding, one token for each forward pass
    heads       drafts of the model's heads, `generate(..., use_mtp=True)`
    lookup      drafts from the prompt, `generate(..., prompt_lookup_num_tokens=...)`, which needs no heads

For each: seconds, tokens a second, new tokens for each forward pass of the model, and the wall time's ratio to greedy
(median over prompts, below 1 is faster). For the heads also how often the draft of each token ahead was kept. In
float32 all sides give the same tokens, but for ties within rounding; how many answers differ is printed.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.shared import hardware, parser_of, write_report
from hpt_trl import load_with_future_heads
from hpt_trl.files import lines_of

SIDES = ("greedy", "heads", "lookup")


class Calls:
    """Counts the forward passes of a model."""

    def __init__(self, model: Any):
        self.number = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *arguments: Any) -> None:
        self.number += 1


def prompts_of(arguments: argparse.Namespace) -> list[str]:
    lines = lines_of(arguments.prompts)
    rows = [json.loads(line)[arguments.column] for line in lines[arguments.skip : arguments.skip + arguments.count]]
    return [arguments.template.encode().decode("unicode_escape").replace("{prompt}", row) for row in rows]


def answer(model: Any, side: str, ids: torch.Tensor, arguments: argparse.Namespace) -> tuple[torch.Tensor, float]:
    """Prompt and answer, (1, T), and the seconds that it took."""
    given: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    given |= {"heads": {"use_mtp": True}, "lookup": {"prompt_lookup_num_tokens": arguments.lookup}}.get(side, {})
    started = time.perf_counter()
    sequence = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return sequence, time.perf_counter() - started


def measure(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    calls = Calls(plain)
    found: dict[str, dict[str, Any]] = {
        side: {"times": [], "tokens": 0, "calls": 0, "differ": 0, "drafted": {}, "accepted": {}} for side in SIDES
    }
    for number, prompt in enumerate(prompts_of(arguments)):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
        if number == 0:
            for side in SIDES:
                answer(model, side, ids, arguments)
        first, answers = number % len(SIDES), {}
        for side in [*SIDES[first:], *SIDES[:first]]:
            before, own = calls.number, found[side]
            answers[side], seconds = answer(model, side, ids, arguments)
            own["times"].append(seconds)
            own["tokens"] += answers[side].shape[1] - ids.shape[1]
            own["calls"] += calls.number - before
            if side == "heads":
                for name in ("drafted", "accepted"):
                    for ahead, count in getattr(plain.speculation, name).items():
                        own[name][ahead] = own[name].get(ahead, 0) + count
        for side in SIDES:
            found[side]["differ"] += not torch.equal(answers[side], answers["greedy"])
    report = {}
    for side, own in found.items():
        ratios = [one / other for one, other in zip(own["times"], found["greedy"]["times"], strict=True)]
        report[side] = {
            "seconds": round(sum(own["times"]), 3),
            "tokens_per_second": round(own["tokens"] / sum(own["times"]), 2),
            "tokens_per_call": round(own["tokens"] / own["calls"], 3),
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "answers_that_differ": own["differ"],
        }
    drafted, accepted = found["heads"]["drafted"], found["heads"]["accepted"]
    report["heads"]["kept_by_tokens_ahead"] = {
        ahead: round(accepted.get(ahead, 0) / count, 3) for ahead, count in sorted(drafted.items())
    }
    return report


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--model", required=True, help="folder of a run of `stage: mtp`")
    parser.add_argument("--prompts", required=True, help="a file of JSON lines")
    parser.add_argument("--column", default="prompt")
    parser.add_argument("--template", default="{prompt}")
    parser.add_argument("--skip", type=int, default=0, help="lines, such as those that were trained on")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--lookup", type=int, default=3, help="tokens that prompt lookup drafts")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args(words)
    model = load_with_future_heads(arguments.model, dtype=arguments.dtype).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    report = {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "model", "prompts")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "hardware": hardware(),
        "sides": measure(model, AutoTokenizer.from_pretrained(arguments.model), arguments),
    }
    write_report(report, arguments.output)
    for side, own in report["sides"].items():
        print(
            f"{side:<8}{own['tokens_per_second']:8.1f} tokens/s, {own['ratio_median']:.2f} of greedy's time "
            f"({own['ratio_range'][0]:.2f} to {own['ratio_range'][1]:.2f}), {own['tokens_per_call']:.2f} tokens a "
            f"call, {own['answers_that_differ']} answers differ"
        )
    kept = report["sides"]["heads"]["kept_by_tokens_ahead"]
    print(f"drafts kept, by tokens ahead: {', '.join(f'{ahead}: {share:.0%}' for ahead, share in kept.items())}")
    return report


if __name__ == "__main__":
    main()
