"""Time of a step of multi-token prediction beside next-token training, against the FLOPs that it has more.

    python -m benchmarks.mtp_step --output benchmarks/results/mtp_step-cpu.json

A Llama of SmolLM2-135M's shape (30 layers, width 576, a vocabulary of 49,152) with random weights, on rows of random
tokens without padding. The sides:

    sft             trl.SFTTrainer: next-token training, with TRL's kernel for the output embeddings
    next-token      the same loss by this package's head, which forms the gradient in the forward pass
    mtp             four heads, copies of the last layer
    mtp-kernel      the same losses by TRL's kernel, which forms the logits of the backward pass anew
    mtp-verifiable  four heads, and of each token the weight that a value model's cached values give it
    mtp-checkpoint  four heads, whose activations are computed again
    mtp-residual    four heads, of which three are a matrix each

The FLOPs of a token (T tokens a row, L layers of p parameters, n heads, width d, vocabulary V; causal attention):
l = 2 p + 2 T d for a layer's forward pass, h = 2 d V for the head's. Next-token training has 3 L l + 4 h with TRL's
kernel and 3 L l + 3 h with ours, n heads 3 (L + n - 1) l + 4 n h and 3 (L + n - 1) l + 3 n h, a checkpointed layer 4 l
and a matrix 6 d^2. At 1,024 tokens a row four heads cost 1.54 times SFTTrainer's step, by TRL's kernel 1.78 times.
What is asked for is the time's ratio divided by the FLOPs' ratio: 1 is the hardware's own.

Time: the sides take turns in one process; each turn is one `.train()` of one optimizer step. Each round gives a ratio,
side / sft, side / next-token and side / mtp; their medians are printed.

Memory: bytes that one forward pass keeps for the backward pass, weights not counted; the gradient of the output
embeddings that is formed early counts by itself, since the other kernel allocates it as the backward pass begins.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from benchmarks.shared import hardware, parser_of, write_report
from benchmarks.steps import one_step, save_models, take_turns, timed
from hpt_trl import WeightedMTPConfig, WeightedMTPTrainer
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.value_model import HeadSettings, new_value_model

SIDES: dict[str, dict[str, Any] | None] = {
    "sft": None,
    # The random control of the weights: with one head and none it would be TRL's own path.
    "next-token": {"n_future_tokens": 1, "weighting": "random_matched"},
    "mtp": {},
    "mtp-kernel": {},
    "mtp-verifiable": {"weighting": "verifiable"},
    "mtp-checkpoint": {"checkpoint_heads": True},
    "mtp-residual": {"head_init": "zero_residual"},
}
# What the others are measured by.
BASES = ("sft", "next-token", "mtp")


class ByKernel(WeightedMTPTrainer):
    """The way of weights that follow from the losses, with weights of 1: TRL's kernel."""

    def _asked(self, *arguments: Any) -> Any:
        asked = super()._asked(*arguments)
        asked.weigh = torch.ones_like
        return asked


def save_critic(folder: Path) -> None:
    """Writes a value model of the model's own shape, with a head of random weights."""
    torch.manual_seed(2)
    critic = new_value_model(str(folder / "model"), lambda width: HeadSettings(width, "mlp"), dtype=torch.float32)
    for weight in critic.head.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    critic.save_pretrained(folder / "critic")
    load_tokenizer(str(folder / "model")).save_pretrained(folder / "critic")


def build(side: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """The trainer of a side; its `timer` has the time of the last step."""
    settings = SIDES[side]
    common = one_step(folder, arguments)
    if settings is None:
        trainer_class: type = SFTTrainer
        config: Any = SFTConfig(**common)
    else:
        trainer_class = ByKernel if side == "mtp-kernel" else WeightedMTPTrainer
        common |= {"n_future_tokens": arguments.heads, "value_cache_dir": str(folder / "values")}
        common |= {"value_model_name_or_path": str(folder / "critic")} if side == "mtp-verifiable" else {}
        config = WeightedMTPConfig(**(common | settings))
    return timed(trainer_class, config, folder, arguments)


def flops(side: str, model: Any, arguments: argparse.Namespace) -> float:
    """FLOPs of a trained token, see above."""
    config, heads = model.config, arguments.heads if side.startswith("mtp") else 1
    width, layers = config.hidden_size, config.num_hidden_layers
    parameters = sum(
        module.weight.numel() for module in model.model.layers[0].modules() if isinstance(module, torch.nn.Linear)
    )
    layer = 2 * parameters + 2 * arguments.tokens * width
    head = 2 * width * config.vocab_size
    more = {"mtp-checkpoint": 4 * layer, "mtp-residual": 6 * width**2}.get(side, 3 * layer)
    return 3 * layers * layer + (heads - 1) * more + heads * head * (4 if side in ("sft", "mtp-kernel") else 3)


def kept(trainer: Any) -> dict[str, float]:
    """MiB that the forward pass of a batch keeps, and of the gradient that it forms early."""
    model = trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    batches, items = [batch], None
    if isinstance(trainer, WeightedMTPTrainer):
        batches, items = trainer.get_batch_samples(iter(batches), 1, trainer.args.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.compute_loss(model, batches[0], num_items_in_batch=items)
    states, matrix = _formed(loss)
    return {"kept_mib": (sum(found.values()) + states) / 2**20, "formed_early_mib": matrix / 2**20}


def _formed(loss: torch.Tensor) -> tuple[int, int]:
    """Bytes of the gradients that our head holds: of the hidden states, and of the output embeddings."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (formed := getattr(node, "formed", None)) is not None:
            states, *matrix = [0 if one is None else one.numel() * one.element_size() for one in formed]
            return states, sum(matrix)
        nodes += [before for before, _ in node.next_functions]
    return 0, 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    trainers = {side: build(side, folder, arguments) for side in arguments.sides}
    times = take_turns(trainers, arguments.rounds)
    report: dict[str, Any] = {}
    model = trainers["sft"].model
    for side, own in times.items():
        found: dict[str, Any] = {"seconds": round(statistics.median(own), 3)}
        for base in BASES:
            if base in times:
                ratios = [one / other for one, other in zip(own, times[base], strict=True)]
                expected = flops(side, model, arguments) / flops(base, model, arguments)
                found[f"of_{base}"] = {
                    "ratio": round(statistics.median(ratios), 3),
                    "range": [round(min(ratios), 3), round(max(ratios), 3)],
                    "flops_ratio": round(expected, 3),
                    "ratio_over_flops": round(statistics.median(ratios) / expected, 3),
                }
        found |= {name: round(value, 1) for name, value in kept(trainers[side]).items()}
        report[side] = found
    for found in report.values():
        found["kept_ratio"] = round(found["kept_mib"] / report["sft"]["kept_mib"], 3)
        # TRL's kernel allocates the same matrix when the backward pass begins, all activations still there.
        early = found["kept_mib"] + found["formed_early_mib"]
        found["kept_with_formed_ratio"] = round(early / report["sft"]["kept_mib"], 3)
    return report


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--heads", type=int, default=4, help="tokens ahead")
    parser.add_argument("--rows", type=int, default=1, help="of a step")
    parser.add_argument("--tokens", type=int, default=1024, help="of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    arguments = parser.parse_args(words)
    if arguments.sides[0] != "sft":
        parser.error("--sides: all ratios are against sft; name it first.")
    with tempfile.TemporaryDirectory() as temporary:
        save_models(Path(temporary), arguments)
        save_critic(Path(temporary))
        report = {
            "settings": {key: value for key, value in vars(arguments).items() if key != "output"},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "hardware": hardware(),
            "sides": measure(Path(temporary), arguments),
        }
    write_report(report, arguments.output)
    show(report)
    return report


def show(report: dict[str, Any]) -> None:
    """Prints a line for each side."""
    for side, found in report["sides"].items():
        of = [
            f"{found[name]['ratio']:.2f} of {name[3:]} ({found[name]['ratio_over_flops']:.2f} of its FLOPs)"
            for name in (f"of_{base}" for base in BASES)
            if name in found
        ]
        held = f"kept {found['kept_mib']:.0f} MiB, {found['kept_ratio']:.3f} of sft's"
        early = f"{found['formed_early_mib']:.0f} formed early, with them {found['kept_with_formed_ratio']:.3f}"
        print(f"{side:<15}{found['seconds']:7.2f} s, {', '.join(of)}; {held}, {early}")


if __name__ == "__main__":
    main()
