"""How far a quantized model is from the same model in full precision: what a merged QLoRA adapter loses.

    python -m benchmarks.quantization_gap --output benchmarks/results/quantization_gap-cpu.json

`hpt-trl merge` puts an adapter that was trained over a quantized base into the unquantized one, so what quantization
changed in the base is what the merged model differs by (docs/quantization.md). Here the base is the built-in
SmolLM2-135M-Instruct in float32, whose weights come from a GGUF file in 4 bits (Q4_1) and were rounded once before.
The model reads demonstrations of the arithmetic task, nothing is trained or generated. Means over the demonstrations'
tokens, in nats: the KL divergence of the quantized model's next-token distribution from the base's own, KL(base ||
quantized), and the absolute difference of the written token's log-probability; and how often both find the same token
the likeliest. The losses are those of the demonstrations.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.shared import hardware, parser_of, write_report
from hpt_trl.data.tasks import arithmetic
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model

# As the keys of a recipe load them.
BASES: dict[str, dict[str, Any]] = {
    "8-bit": {"load_in_8bit": True},
    "4-bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4-bit, double quantization": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
}


def read_rows(model: str, count: int) -> list[tuple[list[int], list[int]]]:
    """Returns the token ids of prompts, in the chat format, and of their demonstrations."""
    tokenizer = load_tokenizer(model)
    data, _ = arithmetic({"size": count, "test_size": 0}, seed=0)
    rows = []
    for row in data:
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        rows.append(
            (
                tokenizer(prompt, add_special_tokens=False).input_ids,
                tokenizer(row["completion"], add_special_tokens=False).input_ids,
            )
        )
    return rows


@torch.no_grad()
def log_probabilities(model: Any, rows: list[tuple[list[int], list[int]]], batch: int = 16) -> torch.Tensor:
    """Returns those of every next token at the demonstrations' tokens (tokens of all rows, vocabulary)."""
    parts = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        # Padded on the right, no token attends to the padding.
        whole = [torch.tensor(prompt + completion) for prompt, completion in some]
        ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True).to(model.device)
        logits = model(input_ids=ids).logits.float()
        for (prompt, completion), found in zip(some, logits, strict=True):
            begin = len(prompt) - 1
            parts.append(found[begin : begin + len(completion)].log_softmax(dim=-1).cpu())
    return torch.cat(parts)


def loss(found: torch.Tensor, written: torch.Tensor) -> float:
    """Returns the mean loss of the tokens that are written."""
    return round(float(-found[torch.arange(len(written)), written].mean()), 4)


def gap(base: torch.Tensor, other: torch.Tensor, written: torch.Tensor) -> dict[str, float]:
    """Compares log-probabilities (tokens, vocabulary) at the tokens that are written (tokens)."""
    at = (torch.arange(len(written)), written)
    return {
        "kl_per_token": round(float((base.exp() * (base - other)).sum(dim=-1).mean()), 5),
        "written_token_difference": round(float((base[at] - other[at]).abs().mean()), 5),
        "same_likeliest_token": round(float((base.argmax(dim=-1) == other.argmax(dim=-1)).float().mean()), 4),
        "loss_per_token": loss(other, written),
    }


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__, output="JSON for the figures")
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model or a folder")
    parser.add_argument("--rows", type=int, default=32, help="demonstrations")
    arguments = parser.parse_args(words)
    rows = read_rows(arguments.model, arguments.rows)
    written = torch.tensor([token for _, completion in rows for token in completion])

    def read(**settings: Any) -> torch.Tensor:
        folder = resolve_model(arguments.model)
        return log_probabilities(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings), rows)

    base = read()
    report: dict[str, Any] = {
        "model": arguments.model,
        "hardware": hardware(),
        "rows": len(rows),
        "tokens": len(written),
        "loss_per_token": loss(base, written),
        "bases": {},
    }
    print(f"{len(rows)} demonstrations, {len(written)} tokens, the base's loss {report['loss_per_token']:.2f}")
    for name, settings in BASES.items():
        found = report["bases"][name] = gap(base, read(quantization_config=BitsAndBytesConfig(**settings)), written)
        print(
            f"{name:<28} KL {found['kl_per_token']:.4f}, written token {found['written_token_difference']:.3f} nats, "
            f"same likeliest token {found['same_likeliest_token']:.1%}, loss {found['loss_per_token']:.2f}",
            flush=True,
        )
    write_report(report, arguments.output)
    return report


if __name__ == "__main__":
    main()
