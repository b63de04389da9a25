"""Self-speculative decoding: the heads draft, the model verifies all drafts in its next forward pass.

The loop is transformers' own (`_assisted_decoding`): it verifies, cuts the cache back to what was accepted, minds the
length and the end tokens, and processes every position's logits as plain decoding does. What is given to it is a
candidate generator, which reads the last layer's input instead of running the model again. The output is that of plain
decoding: token for token when greedy, in distribution when sampling (arXiv 2211.17192, algorithm 1).
"""

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.masking_utils import create_masks_for_generate

from hpt_trl.errors import UserError
from hpt_trl.models.decoder_parts import hidden_of
from hpt_trl.models.future_heads.heads import KINDS, RESIDUALS
from hpt_trl.models.future_heads.trunk import LastLayer, parts_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

_SOFTCAP = "final_logit_softcapping"
_CACHES = ("past_key_values", "layer_past", "past_key_value")


@dataclass
class Speculation:
    """What self-speculative decoding came to.

    Attributes:
        calls: forward passes of the model, that of the prompt included.
        drafted: drafts that were verified, by how many tokens ahead they were: {1: ..., 2: ...}.
        accepted: those of them that were kept.
    """

    calls: int = 0
    drafted: dict[int, int] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """New tokens: one for each call, and the accepted drafts."""
        return self.calls + sum(self.accepted.values())

    @property
    def tokens_per_call(self) -> float:
        """New tokens for each forward pass of the model; plain decoding has 1."""
        return self.tokens / max(self.calls, 1)

    def add(self, drafted: int, accepted: int) -> None:
        """Count one verification."""
        self.calls += 1
        for counts, number in ((self.drafted, drafted), (self.accepted, accepted)):
            for ahead in range(1, number + 1):
                counts[ahead] = counts.get(ahead, 0) + 1

    def include(self, other: "Speculation") -> None:
        """Add what another generation came to."""
        self.calls += other.calls
        for counts, more in ((self.drafted, other.drafted), (self.accepted, other.accepted)):
            for ahead, number in more.items():
                counts[ahead] = counts.get(ahead, 0) + number


class HeadCandidates(CandidateGenerator):
    """Drafts of heads 2 to n, from the hidden states of the accepted tokens; one call of the output embeddings for all.

    The heads' own cache holds accepted positions alone and is never cut back.
    """

    requires_model_outputs = True
    model_kwargs_overrides: dict[str, Any] = {}

    def __init__(
        self,
        model: Any,
        seen: LastLayer,
        counts: Speculation,
        generation_config: "GenerationConfig",
        logits_processor: Any,
        input_ids: Tensor,
    ):
        self.model, self.seen, self.counts = model, seen, counts
        self.parts = parts_of(model)
        self.signature = inspect.signature(self.parts.layer.forward)
        self.do_sample, self.max_length = generation_config.do_sample, generation_config.max_length
        self.logits_processor = logits_processor
        self.ends = getattr(generation_config, "_eos_token_tensor", None)
        self.cache = DynamicCache()
        # Accepted positions that the heads have read.
        self.read = 0
        self.drafted = 0
        # Length of the sequence before the verification that is under way.
        self.length = input_ids.shape[1]

    def get_candidates(  # type: ignore[override]
        self, input_ids: Tensor, model_kwargs: dict[str, Any], is_first_iteration: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Drafts after `input_ids`, (1, T).

        Returns:
            The ids with the drafts behind them, and where tokens are sampled the drafts' logits, (1, drafts, V).
        """
        self.length = input_ids.shape[1]
        # Each verification gives a token beside the drafts it keeps.
        wanted = min(self.model.future_heads.n_future_tokens - 1, self.max_length - self.length - 1)
        if is_first_iteration and wanted > 0 and self._ended(input_ids):
            # Before 5.23 the loop takes a prompt that ends with an end token for a finished answer. Any draft will do.
            self.drafted = 1
            return torch.cat([input_ids, self._no_end(input_ids)], dim=-1), None
        if is_first_iteration or wanted < 1:
            self.drafted = 0
            return input_ids, None
        logits = self._logits(model_kwargs)[:, :wanted].to(input_ids.device)
        ids = input_ids
        drafts: list[Tensor] = []
        for ahead in range(wanted):
            # Nothing comes after an end; before 5.23 the loop would count on that.
            if drafts and self._ended(ids):
                break
            scores = logits[:, ahead].float()
            if self.logits_processor:
                scores = self.logits_processor(ids, scores)
            token = scores.softmax(-1).multinomial(1) if self.do_sample else scores.argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], dim=-1)
            drafts.append(scores)
        self.drafted = len(drafts)
        return ids, torch.stack(drafts, dim=1) if self.do_sample else None

    def _ended(self, ids: Tensor) -> bool:
        return self.ends is not None and bool(torch.isin(ids[0, -1], self.ends.to(ids.device)))

    def _no_end(self, ids: Tensor) -> Tensor:
        """The first token that ends nothing. Shape: (1, 1)."""
        ends = set() if self.ends is None else set(self.ends.tolist())
        return ids.new_tensor([[next(token for token in range(len(ends) + 1) if token not in ends)]])

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        self.counts.add(self.drafted, input_ids.shape[1] - self.length - 1)

    def _logits(self, model_kwargs: dict[str, Any]) -> Tensor:
        """Logits of all heads for the tokens after the last one. Shape: (1, n - 1, V)."""
        # The last accepted token has not been through the model yet.
        new = self.length - 1 - self.read
        heads, start = self.model.future_heads, self.seen.hidden
        if heads.kind == RESIDUALS:
            last = self.seen.output[:, new - 1 : new]
            hidden = torch.cat([last + layer(last) for layer in heads.layers], dim=1)
        else:
            hidden = self._copies(start[:, :new], start.shape[1], model_kwargs)
        self.read += new
        return self._head(self.parts.norm(hidden))

    def _copies(self, start: Tensor, fed: int, model_kwargs: dict[str, Any]) -> Tensor:
        """The heads' states at the last of the accepted positions, before the norm. Shape: (1, n - 1, d).

        Args:
            start: the trunk's hidden states at positions that the heads have not read, (1, new, d).
            fed: positions of the model's last forward pass; those after the accepted ones were drafts.
        """
        new = start.shape[1]
        call = self.signature.bind(*self.seen.args, **self.seen.kwargs)
        call.arguments[next(iter(call.arguments))] = start
        named = call.arguments | call.arguments.get("kwargs", {})
        places = ("position_ids", "cache_position")
        changed: dict[str, Any] = {name: _first(named[name], new, fed) for name in places if name in named}
        if named.get("position_embeddings") is not None:
            changed["position_embeddings"] = tuple(_first(part, new, fed) for part in named["position_embeddings"])
        changed["attention_mask"] = self._mask(start, changed.get("position_ids"), model_kwargs)
        changed |= {name: self.cache for name in _CACHES if name in named}
        for name, value in changed.items():
            place = call.arguments if name in call.signature.parameters else call.arguments["kwargs"]
            if name in named:
                place[name] = value
        heads = [hidden_of(layer(*call.args, **call.kwargs))[:, -1:] for layer in self.model.future_heads.layers]
        return torch.cat(heads, dim=1)

    def _mask(self, start: Tensor, position_ids: Tensor | None, model_kwargs: dict[str, Any]) -> Any:
        """The mask of the heads' attention over what they have read and what they read now."""
        config = self.model.config.get_text_config()
        padding = model_kwargs.get("attention_mask")
        if padding is not None:
            padding = padding[:, : self.read + start.shape[1]]
        masks = create_masks_for_generate(
            config=config,
            inputs_embeds=start,
            attention_mask=padding,
            past_key_values=self.cache,
            position_ids=position_ids,
        )
        return masks[config.layer_types[-1]] if isinstance(masks, dict) else masks

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits as the model's own forward forms them from the normed hidden state."""
        logits = self.model.get_output_embeddings()(hidden)
        scale, softcap = logit_scale(self.model.config), self.model.config.get_text_config().to_dict().get(_SOFTCAP)
        logits = logits if scale == 1 else logits * scale
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def logit_scale(config: "PretrainedConfig") -> float:
    """What a family multiplies its logits by; 1 in most."""
    text = config.get_text_config()
    settings = text.to_dict()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if settings.get(name) is not None:
            return settings[name]
    if settings.get("logits_scaling") is not None:
        return settings["logits_scaling"] if text.model_type == "hyperclovax" else 1 / settings["logits_scaling"]
    return 1.0


def _first(value: Tensor | None, new: int, fed: int) -> Tensor | None:
    """What belongs to the first `new` of the positions that were fed; what has no such axis stays."""
    if value is None:
        return None
    axis = next((axis for axis in (1, 0) if value.ndim > axis and value.shape[axis] == fed), None)
    return value if axis is None else value.narrow(axis, 0, new)


def generate_rows(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Speculation]:
    """Decode several prompts self-speculatively, one after the other: assisted decoding takes one row at a time.

    Args:
        model: one with heads, also with an adapter around it.
        input_ids: prompts, padded on the left, (B, T).
        attention_mask: 0 where a prompt is padding, (B, T).
        kwargs: of `generate`.

    Returns:
        Prompts and completions, padded on the right as `generate` pads them, (B, T + longest); and what all of them
        came to.

    Raises:
        UserError: the model has no heads, or those that a checkpoint ships, whose drafts transformers does not count.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = getattr(getattr(plain, "future_heads", None), "kind", None)
    if kind not in KINDS:
        what = "has no heads" if kind is None else "has heads that its checkpoint ships, whose drafts are not counted"
        raise UserError(f"the model {what}; decode row by row with `generate`, `use_mtp=True` where it drafts.")
    total, rows = Speculation(), []
    for number, row in enumerate(input_ids):
        mask = torch.ones_like(row) if attention_mask is None else attention_mask[number]
        prompt = row[mask.bool()][None]
        done = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_mtp=True, **kwargs)
        total.include(plain.speculation)
        rows.append(torch.cat([row, done[0, prompt.shape[1] :]]))
    pad = kwargs.get("pad_token_id", plain.generation_config.pad_token_id)
    if pad is None:
        pad = kwargs.get("eos_token_id", plain.generation_config.eos_token_id)
    pad = pad[0] if isinstance(pad, list | tuple) else pad
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad or 0), total
