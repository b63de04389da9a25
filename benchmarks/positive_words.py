"""What PPO on the positive-words task bought, and at what price: success, KL to the reference, and fluency.

    python -m benchmarks.positive_words --output benchmarks/results/positive_words-cpu.json

Runs the recipe `ppo/smollm2-135m-positive-words` (or takes a finished `--run` folder), samples completions of the three
prompts from the base model and from the trained one, and measures both under the base model, the reference: the share
of successes with its 95 % interval (Wilson's), the perplexity of its samples, and the KL of a completion in nats (mean
of log pi - log pi_ref of the sampled tokens).
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.shared import parser_of, write_report
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model
from hpt_trl.rewards.positive_words import positive_words

RECIPE = "ppo/smollm2-135m-positive-words"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--run", help="folder of a finished run; by default the recipe is run first")
    parser.add_argument("--samples", type=int, default=96, help="completions of each prompt")
    parser.add_argument("--seed", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    folder = Path(arguments.run or "outputs/positive_words")
    if arguments.run is None:
        command = [sys.executable, "-m", "hpt_trl", "run", RECIPE, "--output_dir", str(folder), "--overwrite", "true"]
        subprocess.run(command + overrides, check=True)

    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    results = json.loads((folder / "results.json").read_text())
    name = recipe["model_name_or_path"]
    tokenizer: Any = load_tokenizer(name)
    base = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=torch.bfloat16).eval()
    prompts, longest = recipe["dataset_options"]["prompts"], recipe["max_completion_length"]
    report = {"recipe": RECIPE, "steps": results["steps"], "train_minutes": results["wall_time_s"]["train"] / 60}
    report["base"] = measure(base, base, tokenizer, prompts, longest, arguments.samples, arguments.seed)
    trained: Any = PeftModel.from_pretrained(base, str(folder)).eval()
    report["trained"] = measure(trained, trained, tokenizer, prompts, longest, arguments.samples, arguments.seed)
    report["perplexity_ratio"] = report["trained"]["perplexity"] / report["base"]["perplexity"]
    for side in ("base", "trained"):
        figures = report[side]
        low, high = figures["success_interval"]
        print(
            f"{side:8s} success {figures['success']:.1%} ({low:.1%} to {high:.1%})  "
            f"perplexity under the base {figures['perplexity']:.1f}  KL {figures['kl']:.2f} nats  "
            f"distinct {figures['distinct']:.1%}"
        )
        print("         " + "\n         ".join(figures["examples"]))
    print(f"perplexity ratio {report['perplexity_ratio']:.2f}, {report['train_minutes']:.1f} min of training")
    write_report(report, arguments.output)


@torch.no_grad()
def measure(
    model: Any, base: Any, tokenizer: Any, prompts: list[str], longest: int, samples: int, seed: int
) -> dict[str, Any]:
    """Success, perplexity under the base model and KL to it, of sampled completions."""
    torch.manual_seed(seed)
    nll = kl = tokens = 0.0
    texts: list[tuple[str, str]] = []
    for prompt in prompts:
        inputs = tokenizer([prompt] * samples, return_tensors="pt")
        width = inputs["input_ids"].size(1)
        output = model.generate(**inputs, max_new_tokens=longest, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        completion = output[:, width:]
        ended = (completion == tokenizer.eos_token_id).int().cumsum(1)
        mask = ((ended - (completion == tokenizer.eos_token_id).int()) == 0).float()
        own = logps(model, output, width)
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                reference = logps(model, output, width)
        else:
            reference = logps(base, output, width)
        nll -= (reference * mask).sum().item()
        kl += ((own - reference) * mask).sum().item()
        tokens += mask.sum().item()
        texts += [(prompt, text) for text in tokenizer.batch_decode(completion, skip_special_tokens=True)]
    rewards = positive_words([prompt for prompt, _ in texts], [text for _, text in texts])
    success = sum(reward > 0 for reward in rewards) / len(rewards)
    return {
        "success": success,
        # Of these prompts, whose completions are drawn independently.
        "success_interval": list(wilson(success, len(rewards))),
        "perplexity": math.exp(nll / tokens),
        "kl": kl / len(texts),
        "distinct": len({*texts}) / len(texts),
        "samples": len(texts),
        "examples": [prompt + text for prompt, text in texts[:: max(1, samples // 2)]],
    }


def logps(model: Any, ids: torch.Tensor, width: int) -> torch.Tensor:
    logits = model(ids).logits[:, width - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(2, ids[:, width:].unsqueeze(2)).squeeze(2)


if __name__ == "__main__":
    main()
