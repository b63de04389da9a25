"""Time of a generation: stock GRPOTrainer's, ours, transformers' continuous batching and vLLM.

    python -m benchmarks.generation                      # SmolLM2-135M; about 5 minutes on two cores
    python -m benchmarks.generation --output benchmarks/results/generation-cpu.json
    python -m benchmarks.generation --float32
    python -m benchmarks.generation --beside "continuous batching"

Each side draws the completions of one generation batch, from the same random numbers, in turns in one process; each
round gives one ratio to the stock side, of the wall time and of the time of the processor. The questions are such as
an instruction-tuned model answers now in a word and now at length, at temperature 1.

Of the positions that go through the model are told those that nobody reads: padding before a prompt, tokens after the
end of a row, and a prompt again for each member of its group.
"""

import statistics
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from benchmarks.shared import hardware, parser_of, write_report
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model
from hpt_trl.rollouts.trainer import RolloutTrainer

QUESTIONS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?",
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?",
    "What is 17 + 25?",
    "Name three colours.",
    "Is 91 a prime number? Answer yes or no.",
    "Julie is reading a 120-page book. Yesterday, she was able to read 12 pages and today, she read twice as many "
    "pages as yesterday. If she wants to read half of the remaining pages tomorrow, how many pages should she read?",
    "Who wrote Hamlet? Answer with the name alone.",
    "James writes a 3-page letter to 2 different friends twice a week. How many pages does he write a year?",
]
OTHERS: dict[str, tuple[type, dict[str, Any]]] = {
    "continuous batching": (GRPOTrainer, {"use_transformers_continuous_batching": True}),
    # Needs the environment of `make test-vllm`; its engine computes in bfloat16.
    "vllm": (RolloutTrainer, {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}),
}


class Counted:
    """Positions that went through a model, by how they were used."""

    def __init__(self, model: torch.nn.Module):
        self.computed = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self.computed += kwargs["input_ids"].numel()

    def unread(self, prompts: list[list[int]], completions: list[list[int]]) -> float | None:
        """Share of what was computed since the last call; None for an engine with a model of its own."""
        once = sum(map(len, {tuple(prompt) for prompt in prompts}))
        # The last token of a row goes through no model.
        drawn = sum(len(completion) - 1 for completion in completions)
        computed, self.computed = self.computed, 0
        return 1 - (once + drawn) / computed if computed else None


def build(trainer_class: type, arguments: Any, model: str, **settings: Any) -> Any:
    gpu = torch.cuda.is_available()
    config = GRPOConfig(
        output_dir="outputs/benchmark",
        num_generations=arguments.group,
        per_device_train_batch_size=arguments.group * len(QUESTIONS),
        max_completion_length=arguments.tokens,
        max_steps=1,
        gradient_checkpointing=False,
        bf16=not arguments.float32,
        use_cpu=not gpu,
        report_to="none",
        **settings,
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS])
    trainer = trainer_class(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        lambda completions, **_: [0.0] * len(completions),
        config,
        rows,
        processing_class=load_tokenizer(model),
    )
    # What `train` does before its first step: the forward passes of mixed precision.
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    trainer.model.train()
    return trainer


def one_generation(trainer: Any, counted: Counted, prompts: list[list[int]], seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    wall, processor = time.perf_counter(), time.process_time()
    completions, _ = trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return times | {"unread": counted.unread(prompts, completions), "completions": completions}


def measure(arguments: Any) -> dict[str, Any]:
    model = str(resolve_model(arguments.model))
    sides = {"stock": build(GRPOTrainer, arguments, model), "ours": build(RolloutTrainer, arguments, model)}
    for name in arguments.beside:
        trainer_class, settings = OTHERS[name]
        sides[name] = build(trainer_class, arguments, model, **settings)
    counted = {side: Counted(trainer.model) for side, trainer in sides.items()}
    encoded, *_ = sides["ours"]._tokenize_prompts([row["prompt"] for row in sides["ours"].train_dataset])
    prompts = [ids for ids in encoded for _ in range(arguments.group)]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    names = list(sides)
    for turn in range(arguments.rounds):
        first = turn % len(names)
        for side in [*names[first:], *names[:first]]:
            rounds[side].append(one_generation(sides[side], counted[side], prompts, seed=turn))
    return {side: _summary(rounds[side], rounds["stock"]) for side in sides}


def _summary(own: list[dict[str, Any]], stock: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = list(zip(own, stock, strict=True))
    tokens = [sum(map(len, one["completions"])) for one in own]
    same = sum(a == b for one, other in pairs for a, b in zip(one["completions"], other["completions"], strict=True))
    return {
        "seconds": [one["seconds"] for one in own],
        "ratio": statistics.median(one["seconds"] / other["seconds"] for one, other in pairs),
        "processor_ratio": statistics.median(one["processor"] / other["processor"] for one, other in pairs),
        "unread": None if own[0]["unread"] is None else statistics.fmean(one["unread"] for one in own),
        "tokens": statistics.fmean(tokens),
        "completions_of_stock": same / sum(len(one["completions"]) for one in own),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--group", type=int, default=4, help="completions of each of the eight questions")
    parser.add_argument("--tokens", type=int, default=128, help="length limit of a completion")
    parser.add_argument("--float32", action="store_true", help="without mixed precision")
    parser.add_argument("--beside", nargs="*", choices=OTHERS, default=[], help="further sides")
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report = {"settings": settings, **hardware(), "sides": measure(arguments)}
    for side, figures in report["sides"].items():
        unread = "" if figures["unread"] is None else f"{figures['unread']:.0%} of the positions unread, "
        print(
            f"{side}: {figures['ratio']:.2f} of stock's time ({figures['processor_ratio']:.2f} of the processor's), "
            f"{unread}{figures['tokens']:.0f} tokens, "
            f"{figures['completions_of_stock']:.0%} of the completions are stock's"
        )
    write_report(report, arguments.output)


if __name__ == "__main__":
    main()
