"""Does Rho-1 help SmolLM2-135M on GSM8K, when half of the corpus are wrong solutions?

    python -m benchmarks.rho1_gsm8k --train path/to/gsm8k_train.jsonl --wrong path/to/example_model_solutions.jsonl \
        --output benchmarks/results/rho1_gsm8k-cpu.json

The data are `grade_school_math/data/train.jsonl` and `example_model_solutions.jsonl` of openai/grade-school-math
(MIT): questions with worked solutions, and other questions with models' solutions labelled right or wrong. The corpus
mixes the first with wrong ones of the second, in one format, as plain text of question and solution; every question
comes once. The reference is the base model tuned on further right rows, `clean`; validation and test rows are right
ones that nothing trains on. Reference and arms are LoRA adapters over the same base unless `--full`; all start at the
base model. See `benchmarks.rho1_arms` for the arms, the search of the learning rate and the seeds.

The defaults are cut for two slow cores: a run sees less than 20,000 tokens. With 64 rows of the corpus, 128 of the
reference and 32 held out it took an hour on one busy core. On a GPU give it more, e.g. `--corpus_rows 2000
--clean_rows 2000 --blocks 8`.
"""

import argparse
import json
import random
import re
import time
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from benchmarks.rho1_arms import Experiment, add_arguments, compare, finish
from benchmarks.shared import parser_of
from hpt_trl import Rho1Trainer
from hpt_trl.files import lines_of
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model

# Calculator marks, which tell nothing that the solution does not: <<48/2=24>>.
MARKS = re.compile(r"<<[^<>]*>>")
# How the two files mark the final answer.
ANSWER = re.compile(r"\n(?:A:|####) *([^\n]*)\s*$")


class Solutions(Experiment):
    """The solutions, the reference and one training on them."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(arguments)
        self.model = resolve_model(arguments.model)
        self.tokenizer = load_tokenizer(arguments.model)
        self.rows = split_rows(arguments, random.Random(0))

    def measure_base(self) -> float:
        return self.trainer(self.rows["clean"], self.rows["test"], 0.0, 0, selection="full").evaluate()["eval_loss"]

    def train_reference(self) -> dict[str, Any]:
        return self.train_reference_on(self.rows["clean"], self.rows["test"])

    def run(self, arm: str, learning_rate: float, seed: int, final: bool) -> dict[str, Any]:
        held_out, epochs = self.rows["test" if final else "validation"], self.arguments.epochs
        return self.train_on(self.rows["corpus"], held_out, arm, learning_rate, seed, num_train_epochs=epochs)

    def trainer(
        self, rows: Dataset, held_out: Dataset, learning_rate: float, seed: int, **settings: Any
    ) -> Rho1Trainer:
        arguments = self.arguments
        config = self.config(
            learning_rate,
            seed,
            max_length=arguments.max_length,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=arguments.blocks,
            model_init_kwargs={"dtype": arguments.dtype},
            warmup_steps=2,
            logging_steps=1,
            **settings,
        )
        adapter = (
            None
            if arguments.full
            else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        trainer = Rho1Trainer(
            self.model,
            config,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            peft_config=adapter,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def text_of(question: str, solution: str) -> str:
    """Question and solution as one text, its final answer marked in GSM8K's way."""
    plain = ANSWER.sub(r"\n#### \1", MARKS.sub("", solution).strip())
    return f"{question.strip()}\n{plain}"


def split_rows(arguments: argparse.Namespace, generator: random.Random) -> dict[str, Dataset]:
    """Rows of the reference (`clean`), the corpus, and the held-out ones, of different questions.

    Raises:
        SystemExit: the files have too few.
    """
    right = [text_of(row["question"], row["answer"]) for row in _read(arguments.train)]
    wrong = []
    for row in _read(arguments.wrong):
        solutions = [value["solution"] for value in row.values() if isinstance(value, dict) and not value["is_correct"]]
        if solutions:
            wrong.append(text_of(row["question"], generator.choice(solutions)))
    generator.shuffle(right)
    generator.shuffle(wrong)
    mixed = round(arguments.noise * arguments.corpus_rows)
    sizes = {
        "clean": arguments.clean_rows,
        "corpus": arguments.corpus_rows - mixed,
        "validation": arguments.held_out_rows,
        "test": arguments.held_out_rows,
    }
    if sum(sizes.values()) > len(right) or mixed > len(wrong):
        raise SystemExit(
            f"{len(right)} right rows and {len(wrong)} questions with a wrong solution; needed: "
            f"{sum(sizes.values())} and {mixed}."
        )
    rows = {}
    for name, size in sizes.items():
        rows[name], right = right[:size], right[size:]
    rows["corpus"] += wrong[:mixed]
    return {name: Dataset.from_list([{"text": text} for text in texts]) for name, texts in rows.items()}


def _read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path)]


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--train", required=True, help="GSM8K's training rows: question, answer")
    parser.add_argument("--wrong", required=True, help="example_model_solutions.jsonl of openai/grade-school-math")
    add_arguments(parser, learning_rates=[3e-4, 1e-3, 3e-3], arms=("full", "random", "excess"))
    parser.add_argument("--noise", type=float, default=0.5, help="share of the corpus' rows that are wrong")
    parser.add_argument("--corpus_rows", type=int, default=80)
    parser.add_argument("--clean_rows", type=int, default=192, help="of the reference")
    parser.add_argument("--held_out_rows", type=int, default=40, help="for each, validation and test")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a block")
    parser.add_argument("--blocks", type=int, default=2, help="per step")
    parser.add_argument("--reference_epochs", type=float, default=1)
    parser.add_argument("--reference_learning_rate", type=float, default=1e-3)
    parser.add_argument("--full", action="store_true", help="train all weights instead of an adapter")
    parser.add_argument("--dtype", default="bfloat16", help="of the loaded weights; with --full write float32")
    parser.add_argument("--model", default="smollm2-135m", help="Hub id or folder")
    parser.add_argument("--folder", default="outputs/rho1_gsm8k")
    arguments = parser.parse_args(words)
    started = time.perf_counter()
    experiment = Solutions(arguments)
    base, reference = experiment.measure_base(), experiment.train_reference()
    said = f"reference {reference['loss']:.4f}, after training on {reference['tokens']:,} tokens"
    print(f"test loss: base model {base:.4f}, {said}", flush=True)
    skipped = ("output", "folder", "train", "wrong")
    report = {
        "settings": {key: value for key, value in vars(arguments).items() if key not in skipped},
        "base_loss": base,
        "reference": reference,
        **compare(experiment.run, arguments),
    }
    report["minutes"] = (time.perf_counter() - started) / 60
    finish(report, arguments)
    print(f"beside them: the base model {base:.4f}, the reference {reference['loss']:.4f}")
    print(f"the reference cost {reference['tokens']:,} training tokens beyond those of a run")
    return report


if __name__ == "__main__":
    main()
