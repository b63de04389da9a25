"""WeightedMTPTrainer: SFTTrainer that predicts several tokens ahead.

What is wrapped of the base, and why:

    __init__              puts heads on the model that the base has loaded, beneath an adapter
    create_optimizer      gives the heads a learning rate of their own
    _clip_grad_norm       clips detached heads by a norm of their own
    get_batch_samples     counts what each head predicts in the whole optimizer step, over all processes
    compute_loss          asks the forward pass for all heads (loss.py)
    _save, _load_*        keeps the heads in their folder beside the model, and in checkpoints

The base tokenizes, packs, accumulates and logs; nothing of it is copied.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hpt_trl.errors import UserError
from hpt_trl.methods.mtp.config import WeightedMTPConfig
from hpt_trl.methods.mtp.forward import ForwardAhead
from hpt_trl.methods.mtp.frozen_models import check_frozen_models, weighing_of
from hpt_trl.methods.mtp.loss import BITS, COUNTS, LossAhead
from hpt_trl.methods.mtp.own_heads import check_own_heads, check_same_heads
from hpt_trl.methods.mtp.positions import longest_row, predicted
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.signatures import takes_arguments_of
from hpt_trl.models.adapters import base_of
from hpt_trl.models.fsdp2 import mend_fsdp2
from hpt_trl.models.future_heads.chained import SHIPPED, load_chained_heads
from hpt_trl.models.future_heads.heads import FutureHeads, new_heads
from hpt_trl.models.future_heads.model import attach
from hpt_trl.models.future_heads.storage import (
    fill_heads,
    folder_with_heads,
    has_heads,
    heads_in,
    load_heads,
    save_heads,
)
from hpt_trl.models.future_heads.trunk import check_architecture
from hpt_trl.models.learning_rates import give_learning_rate, refuse_ready_optimizer
from hpt_trl.models.loading import load_config
from hpt_trl.token_scores.samples import TokenSamples
from hpt_trl.token_scores.weighting import WEIGHTS
from hpt_trl.token_scores.weights_page import SAMPLES_FILE


class WeightedMTPTrainer(MeasuredSFTTrainer, LossAhead):
    """Weighted multi-token prediction (arXiv 2404.19737, with weights for tokens) on TRL's SFTTrainer.

    Takes the arguments of `trl.SFTTrainer`, with `args` a `WeightedMTPConfig`; text (packed or not), or prompts with
    completions. The loss is the sum over heads of their weight times their mean loss, each token's loss multiplied by
    the token's weight:

        L = sum_k weight_k / Z_k * sum_t w[t + k] * nll_k(t)

    with Z_k the tokens that head k predicts in the optimizer step, over accumulation and processes, and w of mean 1
    over the step's trained tokens. With one head and no weights this is SFTTrainer, to the bit.

    Metrics beside the base's: `mtp/loss_head_k` (nats) and `mtp/accuracy_head_k` of each head over its tokens, without
    weights; `eval_loss` and what belongs to it are head 1's, as SFT's are; with weights `mtp/weight_mean` is their mean
    before it is made 1.

    Batches may bring weights of their own: `token_weights`, one for each token, of any scale.

    Raises:
        UserError: a model that cannot have heads, or has heads of another kind or number.
        UserError, ValueError: arguments that do not work with several heads.
    """

    _tag_names = ["trl", "mtp"]
    _name = "Multi-token prediction"
    _paper = {
        "title": "Better & Faster Large Language Models via Multi-token Prediction",
        "id": "2404.19737",
        "citation": """\
@article{gloeckle2024mtp,
    title        = {{Better & Faster Large Language Models via Multi-token Prediction}},
    author       = {Fabian Gloeckle and Badr Youbi Idrissi and Baptiste Rozi{\\`e}re and David Lopez-Paz and
                    Gabriel Synnaeve},
    year         = 2024,
    eprint       = {arXiv:2404.19737}
}""",
    }

    @takes_arguments_of(MeasuredSFTTrainer, WeightedMTPConfig)
    def __init__(self, model: Any, args: WeightedMTPConfig | None = None, **kwargs: Any):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = WeightedMTPConfig(f"{name.split('/')[-1]}-MTP")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("`compute_loss_func` would replace the loss of the heads; leave it out.")
        if args.looks_ahead:
            check_architecture(_config_of(model, args))
        mend_fsdp2()
        super().__init__(model, args, **kwargs)
        if args.looks_ahead:
            self._refuse_what_cannot_work()
            if args.n_future_tokens > 1:
                self._put_heads_on()
        if args.head_learning_rate is not None:
            refuse_ready_optimizer(self, "head_learning_rate", self.optimizer)
        # Also of one head alone, whose batches may bring weights.
        ForwardAhead(self._base)
        self._collate_train = self.data_collator
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        check_frozen_models(args, tokenizer, model=model if isinstance(model, str) else model.config._name_or_path)
        self.weighing = weighing_of(args, tokenizer, self.train_dataset, self.data_collator, self.accelerator)
        if self.weighing is not None:
            self._collate_train = self.weighing.collator
            self._samples = TokenSamples(Path(str(args.output_dir)) / SAMPLES_FILE, tokenizer)
            self.add_callback(self._samples)

    def get_train_dataloader(self) -> Any:
        plain = self.data_collator
        self.data_collator = self._collate_train
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    @property
    def _base(self) -> Any:
        """The model that has the heads, beneath wrapper and adapter."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return base_of(model)

    @property
    def _heads(self) -> FutureHeads | None:
        return getattr(self._base, "future_heads", None)

    def _refuse_what_cannot_work(self) -> None:
        if self._is_vision_dataset:
            raise UserError("rows with images are not supported by multi-token prediction; drop the images.")
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise UserError("prompt learning puts tokens without text before each row; use LoRA.")
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled or parallel.tp_enabled):
            raise UserError("context, sequence and tensor parallelism spread what a head reads; use FSDP or ZeRO.")
        if isinstance(self.train_dataset, Dataset) and "input_ids" in self.train_dataset.column_names:
            longest = longest_row(self.train_dataset, enough=self.args.n_future_tokens + 1)
            if longest <= self.args.n_future_tokens:
                raise UserError(
                    f"n_future_tokens: {self.args.n_future_tokens}, but the longest row has {longest} tokens, so that "
                    "the last head has nothing to predict; allowed: less than that."
                )

    def _put_heads_on(self) -> None:
        base, args = self._base, self.args
        heads = self._heads
        folder = folder_with_heads(str(base.config._name_or_path), revision=getattr(base.config, "_commit_hash", None))
        if heads is None and not args.begins_anew and has_heads(folder):
            check_own_heads(args, folder)
            heads = load_heads(base, folder)
        elif heads is None and args.head_init == SHIPPED:
            if isinstance(self.model, PeftModel):
                raise UserError(
                    "head_init: shipped with an adapter, whose folder has no place for them; train without."
                )
            heads = load_chained_heads(base, folder)
        elif heads is None:
            heads = new_heads(base, args.n_future_tokens, args.head_init)
        check_same_heads(args, heads.n_future_tokens, heads.kind)
        if self.accelerator.mixed_precision != "no" and not self.is_deepspeed_enabled:
            # Under autocast, as an adapter's: steps of this size would be lost in half precision.
            heads.float()
        heads.requires_grad_(True)
        attach(base, heads)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        rate, heads = self.args.head_learning_rate, self._heads
        optimizer = super().create_optimizer(*args, **kwargs)
        if rate is None or heads is None:
            return optimizer
        give_learning_rate(optimizer, heads.parameters(), rate)
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        heads, plugin = self._heads, getattr(self.accelerator.state, "fsdp_plugin", None)
        # DeepSpeed, and the older FSDP, clip all that they hold by one norm.
        together = self.is_deepspeed_enabled or getattr(plugin, "fsdp_version", 2) == 1
        if heads is None or together or not self._detached:
            return super()._clip_grad_norm(model)
        # By one norm the heads' gradients would decide on the step of a trunk that they do not reach.
        own = {id(parameter) for parameter in heads.parameters()}
        parts: tuple[list[Any], list[Any]] = ([], [])
        for parameter in model.parameters():
            parts[id(parameter) in own].append(parameter)
        norm = super()._clip_grad_norm(SimpleNamespace(parameters=lambda: parts[0]))
        torch.nn.utils.clip_grad_norm_(parts[1], self.args.max_grad_norm)
        return norm

    def _held_out_weights(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, float]:
        weights = super()._held_out_weights(inputs, outputs)
        if "head_valid" in outputs:
            for head, tokens in enumerate(outputs["head_valid"].flatten(0, 1).sum(0).tolist(), start=1):
                weights |= dict.fromkeys((f"mtp/loss_head_{head}", f"mtp/accuracy_head_{head}"), float(tokens))
        return weights

    # Counts and weights of an optimizer step.

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if batches and (self.args.looks_ahead or self._brought(batches)):
            self._count(batches)
        return batches, num_items

    def _brought(self, batches: list[dict[str, Any]]) -> bool:
        """Whether batches bring weights of their own.

        Raises:
            UserError: some do and others do not, or there are weights already.
        """
        carrying = [WEIGHTS in batch for batch in batches]
        if any(carrying) and not all(carrying):
            raise UserError(f"{WEIGHTS}: of {len(batches)} micro-batches of a step {sum(carrying)} bring them.")
        if any(carrying) and self.weighing is not None:
            raise UserError(
                f"{WEIGHTS}: batches bring weights, and `weighting: {self.args.weighting}` would make others; "
                "write `weighting: uniform`, or leave them out."
            )
        return any(carrying)

    def _count(self, batches: list[dict[str, Any]]) -> None:
        """Note in each micro-batch what each head predicts in the step, and the tokens' weights with the mean 1."""
        found = None if self.weighing is None else self.weighing.of_step(batches, step=self.state.global_step)
        if found is not None:
            # Of mean 1 already.
            for batch, weights in zip(batches, found, strict=True):
                batch[BITS] = _as_bits(weights)
            self._measure_weights()
        heads = range(1, self.args.n_future_tokens + 1)
        sums = [torch.stack([predicted(batch, k).sum() for batch in batches]).sum().double() for k in heads]
        weighted = self._brought(batches)
        if weighted:
            sums.append(torch.stack([_of_trained(batch).double().sum() for batch in batches]).sum())
        totals = torch.stack(sums)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.accelerator.device), "sum")
        counts = totals[: len(heads)].long()
        for batch in batches:
            batch[COUNTS] = counts
        if weighted:
            mean = float(totals[-1] / totals[0].clamp(min=1))
            if not mean > 0 or mean == float("inf"):
                raise UserError(
                    f"token weights: their mean over a step's trained tokens is {mean}; allowed: numbers of 0 or more, "
                    "not all of them 0."
                )
            self._metrics["train"]["mtp/weight_mean"].append(mean)
            for batch in batches:
                batch[BITS] = _as_bits(batch.pop(WEIGHTS) / mean)

    def _measure_weights(self) -> None:
        for name, value in self.weighing.pop_metrics().items() if self.weighing is not None else ():
            self._metrics["train"][f"mtp/{name}"].append(value)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # What needs the losses of a step is known now.
        self._measure_weights()
        super().log(logs, *args, **kwargs)
        found = None if self.weighing is None else self.weighing.sample()
        if found is not None and self.is_world_process_zero():
            self._samples.write(self.state.global_step, *found)

    # What is saved, and loaded again.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A whole model writes its heads itself.
        if self.args.should_save and self._heads is not None and isinstance(self.model, PeftModel):
            own, _ = heads_in(self.model.state_dict() if state_dict is None else state_dict)
            save_heads(self._base, own, str(output_dir or self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.weighing is not None and self.args.should_save:
            self.weighing.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.weighing is not None and checkpoint is not None:
            self.weighing.load(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_heads(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_heads(str(self.state.best_model_checkpoint))

    def _load_heads(self, checkpoint: str) -> None:
        heads = self._heads
        # Where weights are spread, the launcher's own checkpoint has all of them, or of an adapter's model the adapter.
        spread = self.is_deepspeed_enabled or (self.is_fsdp_enabled and not isinstance(self.model, PeftModel))
        if heads is not None and not spread:
            if heads.kind == SHIPPED:
                heads.load_state_dict(load_chained_heads(self._base, checkpoint).state_dict())
            else:
                fill_heads(heads, checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # They are loaded from their own folder.
        missing: dict[str, Any] = dict.fromkeys(load_result.missing_keys)
        load_result.missing_keys[:] = list(heads_in(missing)[1])
        super()._issue_warnings_after_load(load_result)


def _config_of(model: Any, args: WeightedMTPConfig) -> Any:
    if not isinstance(model, str):
        return model.config
    given: Any = args.model_init_kwargs or {}
    return load_config(model, revision=given.get("revision"), trust_remote_code=args.trust_remote_code)


def _as_bits(weights: Tensor) -> Tensor:
    return weights.float().contiguous().view(torch.int32)


def _of_trained(batch: dict[str, Any]) -> Tensor:
    """Weights of the tokens that have a label."""
    return batch[WEIGHTS][:, 1:][predicted(batch, 1)]
