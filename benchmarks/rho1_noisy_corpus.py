"""Does Rho-1 learn more from a noisy corpus? A tiny model from random weights, and noise whose share is known.

    python -m benchmarks.rho1_noisy_corpus --output benchmarks/results/rho1_noisy_corpus-cpu.json

The corpus is the stories of `stories:documents` with `--noise` of their sentences replaced by random words of the same
vocabulary: nothing about these can be learnt, and nothing in a word gives them away. The reference, of the same size,
is trained on other, clean stories. Every arm starts at the same random weights per seed and sees the same tokens once;
see `benchmarks.rho1_arms` for the arms, the search of the learning rate and the seeds. 24 minutes on one core.

Beside the arms stand two bounds: the reference's own loss, and `clean`, training on all tokens of the same stories
without their noise, at the learning rate of `full`.
"""

import argparse
import time
from typing import Any

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PrinterCallback, set_seed

from benchmarks.rho1_arms import Experiment, add_arguments, compare, finish
from benchmarks.shared import parser_of
from hpt_trl import Rho1Trainer
from hpt_trl.data.stories import stories
from hpt_trl.methods.pretrain.tokenizer import train_tokenizer

VOCABULARY = 700
BLOCK = 128
# Documents of the reference, the corpus and the held-out rows are drawn apart.
REFERENCE_DATA_SEED, CORPUS_DATA_SEED = 1, 2


class NoisyCorpus(Experiment):
    """The corpus, the reference and one training on it."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(arguments)
        self.corpus, held_out = stories("documents", self._options(arguments.noise), seed=CORPUS_DATA_SEED)
        self.clean_corpus = stories("documents", self._options(0.0), seed=CORPUS_DATA_SEED)[0]
        assert held_out is not None
        half = len(held_out) // 2
        self.validation, self.test = held_out.select(range(half)), held_out.select(range(half, len(held_out)))
        self.tokenizer: PreTrainedTokenizerBase = train_tokenizer(self.corpus["text"], VOCABULARY)

    def _options(self, noise: float) -> dict[str, Any]:
        return {"size": self.arguments.documents, "test_size": self.arguments.held_out, "noise": noise}

    def train_reference(self) -> dict[str, Any]:
        options = {"size": self.arguments.reference_documents, "test_size": 0}
        rows, _ = stories("documents", options, seed=REFERENCE_DATA_SEED)
        return self.train_reference_on(rows, self.test)

    def run(self, arm: str, learning_rate: float, seed: int, final: bool) -> dict[str, Any]:
        rows, selection = (self.clean_corpus, "full") if arm == "clean" else (self.corpus, arm)
        held_out, steps = self.test if final else self.validation, self.arguments.steps
        return self.train_on(rows, held_out, selection, learning_rate, seed, max_steps=steps)

    def trainer(
        self, rows: Dataset, held_out: Dataset, learning_rate: float, seed: int, **settings: Any
    ) -> Rho1Trainer:
        config = self.config(
            learning_rate,
            seed,
            max_length=BLOCK,
            per_device_train_batch_size=self.arguments.blocks,
            per_device_eval_batch_size=2 * self.arguments.blocks,
            warmup_steps=20,
            adam_beta2=0.95,
            weight_decay=0.1,
            logging_steps=20,
            **settings,
        )
        set_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=self.arguments.width,
                intermediate_size=3 * self.arguments.width,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=2 * BLOCK,
                tie_word_embeddings=True,
                # As in pretrain/stories-tiny: the usual 0.02 starts a narrow model slowly.
                initializer_range=0.06,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        trainer = Rho1Trainer(model, config, train_dataset=rows, eval_dataset=held_out, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)
        return trainer


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    add_arguments(parser, learning_rates=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--noise", type=float, default=0.3, help="share of the corpus' sentences")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--blocks", type=int, default=8, help=f"of {BLOCK} tokens, per step")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--documents", type=int, default=5000, help="of the corpus; about 50 tokens each")
    parser.add_argument("--reference_documents", type=int, default=4000)
    parser.add_argument("--reference_epochs", type=float, default=3)
    parser.add_argument("--reference_learning_rate", type=float, default=3e-3)
    parser.add_argument("--held_out", type=int, default=400, help="half to choose the learning rate, half to report")
    parser.add_argument("--folder", default="outputs/rho1_noisy_corpus")
    arguments = parser.parse_args(words)
    started = time.perf_counter()
    experiment = NoisyCorpus(arguments)
    reference = experiment.train_reference()
    print(f"reference: held-out loss {reference['loss']:.4f} after {reference['steps']} steps", flush=True)
    report = {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "folder")},
        "reference": reference,
        **compare(experiment.run, arguments),
    }
    if "full" in report["arms"]:
        rate = report["arms"]["full"]["learning_rate"]
        report["clean"] = [experiment.run("clean", rate, seed, True) for seed in arguments.seeds]
    report["minutes"] = (time.perf_counter() - started) / 60
    finish(report, arguments)
    if "clean" in report:
        losses = ", ".join(f"{run['loss']:.4f}" for run in report["clean"])
        print(f"the corpus without its noise, all tokens: {losses}; the reference: {reference['loss']:.4f}")
    return report


if __name__ == "__main__":
    main()
