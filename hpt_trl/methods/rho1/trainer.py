"""Rho1Trainer: SFTTrainer on the tokens that are worth it.

What is wrapped of the base, and why:

    __init__               opens the reference: scores on disk, a second model, or an adapter over the same base
    get_train_dataloader   training batches carry the reference's losses; evaluation stays on all tokens
    get_batch_samples      ranks the tokens of a whole optimizer step, where the scope asks for that
    compute_loss           weights the log-probabilities that the base's own loss adds up
    log, _save             keeps samples of the selections; keeps the reference adapter out of the model's files

The base tokenizes, packs, accumulates, counts the tokens and logs; nothing of it is copied.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import use_adapter

from hpt_trl.errors import UserError
from hpt_trl.methods.rho1.checks import check_selection
from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.methods.rho1.page import SELECTIONS_FILE
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.methods.signatures import takes_arguments_of
from hpt_trl.models.adapters import hidden_adapter, keep_four_bit_trainable
from hpt_trl.models.folders import is_adapter
from hpt_trl.models.fsdp2 import mend_fsdp2
from hpt_trl.models.fused_head import compacted_backward
from hpt_trl.models.hub_parts import adapter_folder
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.trainable import refuse_untrainable
from hpt_trl.token_scores.cache import WithScores, as_bits, scores_of
from hpt_trl.token_scores.kinds import REFERENCE_NLL, scored_positions
from hpt_trl.token_scores.reference import load_reference
from hpt_trl.token_scores.reference_scores import reference_cache, reference_nll
from hpt_trl.token_scores.samples import FirstSequence, TokenSamples
from hpt_trl.token_scores.scoring import autocast_of
from hpt_trl.token_scores.selection import Selection, groups_of, random_scores, ratio_at, select_top

_REFERENCE = "reference"  # name of the reference adapter over the trained model's base

IMAGES_REFUSED = (
    "rows with images are not supported by Rho-1: their tokens are made while a batch is collated. Drop the images."
)


class Rho1Trainer(MeasuredSFTTrainer):
    """Selective Language Modeling (Rho-1, arXiv 2404.07965) on TRL's SFTTrainer.

    Every token is scored in the forward pass, and the loss is the mean over those that are selected; the backward pass
    of the head computes these alone. Takes the arguments of `trl.SFTTrainer`, with `args` a `Rho1Config`; plain text
    (packed or not) or prompts with completions.

    Metrics beside the base's, over the tokens that have a label: `rho1/selected_loss` and `rho1/unselected_loss`
    (nats), `rho1/select_ratio` (what was realised), `rho1/mean_excess` (loss less the reference's, all tokens) and
    `rho1/threshold` (the lowest score that was selected, mean over the groups).

    Raises:
        UserError: the reference is missing, has another tokenizer, or its cached scores do not fit.
        UserError, ValueError: arguments that do not work with a selection.
    """

    _tag_names = ["trl", "rho1"]
    _name = "Rho-1"
    _paper = {
        "title": "Rho-1: Not All Tokens Are What You Need",
        "id": "2404.07965",
        "citation": """\
@article{lin2024rho1,
    title        = {{Rho-1: Not All Tokens Are What You Need}},
    author       = {Zhenghao Lin and Zhibin Gou and Yeyun Gong and Xiao Liu and Yelong Shen and Ruochen Xu and
                    Chen Lin and Yujiu Yang and Jian Jiao and Nan Duan and Weizhu Chen},
    year         = 2024,
    eprint       = {arXiv:2404.07965}
}""",
    }

    args: Rho1Config

    @takes_arguments_of(MeasuredSFTTrainer, Rho1Config)
    def __init__(self, model: Any, args: Rho1Config | None = None, **kwargs: Any):
        if args is None:
            raise ValueError(
                "`args` is missing: a reference model has to be named, which no default can do. Write e.g. "
                'args=Rho1Config("outputs/rho1", reference_model_name_or_path="outputs/reference").'
            )
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("`compute_loss_func` would replace the loss whose tokens are selected; leave it out.")
        if kwargs.get("peft_config") is None:
            refuse_untrainable(model)
        if args.needs_reference:
            name = model if isinstance(model, str) else model.config._name_or_path
            tokenizer = kwargs.get("processing_class") or load_tokenizer(name, trust_remote_code=args.trust_remote_code)
            check_selection(args, tokenizer, model=name)
        mend_fsdp2()
        super().__init__(model, args, **kwargs)
        self._refuse_what_cannot_work()
        self._score_batch: Callable[[dict[str, Any]], Tensor] | None = None
        self._collate_train = self.data_collator
        if args.needs_reference:
            self._open_reference()
        # Scores are taken in evaluation mode, in which such layers would lose their gradients.
        keep_four_bit_trainable(self.model)
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        self._samples = TokenSamples(Path(str(args.output_dir)) / SELECTIONS_FILE, tokenizer)
        self.add_callback(self._samples)
        self._last: tuple[float, dict[str, Any], Tensor, Selection] | None = None

    def _refuse_what_cannot_work(self) -> None:
        if self._is_vision_dataset:
            raise UserError(IMAGES_REFUSED)
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise UserError("prompt learning puts tokens without text before each row; use LoRA.")
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            raise UserError("context and sequence parallelism spread a sequence, whose tokens are ranked together.")
        cached = self.args.needs_reference and self.args.reference_mode == "cached"
        if cached and not isinstance(self.train_dataset, Dataset):
            raise UserError("`reference_mode: cached` scores a dataset with a length; stream with `online`.")

    def _open_reference(self) -> None:
        device = self.accelerator.device
        if self.args.reference_mode == "cached":
            cache = reference_cache(
                self.args,
                cast(PreTrainedTokenizerBase, self.processing_class),
                self.train_dataset,
                self.data_collator,
                device=device,
            )
            self._collate_train = WithScores(self.data_collator, cache)
        elif isinstance(self.model, PeftModel) and _share_base(self.args, self.model):
            self.model.load_adapter(_reference_folder(self.args), _REFERENCE, is_trainable=False)
            self._score_batch = self._score_by_adapter
        else:
            reference = load_reference(self.args, device)
            self._score_batch = lambda batch: reference_nll(reference, batch)

    def _score_by_adapter(self, batch: dict[str, Any]) -> Tensor:
        model = cast(PeftModel, self.model)
        with use_adapter(model, _REFERENCE), _evaluating(model):
            return reference_nll(model, batch)

    def get_train_dataloader(self) -> Any:
        plain = self.data_collator
        self.data_collator = self._collate_train
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    # Selection.

    def _ratio(self) -> float:
        if self.args.selection == "full":
            return 1.0
        return ratio_at(
            self.state.global_step,
            ratio=self.args.select_ratio,
            schedule=self.args.select_ratio_schedule,
            warmup_steps=self.args.selection_warmup_steps,
            max_steps=self.state.max_steps,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.args.selection_scope == "global" and len(batches) > 1 and self._ratio() < 1:
            self._select_beforehand(batches)
        return batches, num_items

    def _select_beforehand(self, batches: list[dict[str, Any]]) -> None:
        """Rank the tokens of all micro-batches together: the first backward pass needs to know of the last one."""
        scores = []
        for batch in batches:
            self._add_reference(batch)
            scores.append(self._scores(batch, self._log_probs(batch) if self.args.selection == "excess" else None))
        for batch, selection in zip(batches, self._select_over_all(batches, scores), strict=True):
            batch["selection"] = selection

    def _log_probs(self, batch: dict[str, Any]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "reference_nll"}
        model = cast(torch.nn.Module, self.model_wrapped)
        with torch.no_grad(), _evaluating(model):
            return model(**inputs, use_cache=False, fused_lm_head=True).log_probs

    def _add_reference(self, batch: dict[str, Any]) -> None:
        """Add the reference's losses where no collator did; like there as bits, which nothing rounds on its way."""
        if self._score_batch is not None and "reference_nll" not in batch:
            with autocast_of(self.args, self.accelerator.device)():
                batch["reference_nll"] = as_bits(self._score_batch(batch))

    def _scores(self, batch: dict[str, Any], log_probs: Tensor | None) -> Tensor:
        """What the tokens are ranked by, higher is better. Shape: (B, T - 1)."""
        if self.args.selection == "random":
            sequences = groups_of(batch["labels"], batch.get("position_ids"))
            seed, step = self.args.seed, self.state.global_step
            return random_scores(batch["input_ids"], _valid(batch), sequences, seed=seed, step=step)
        reference = _reference_of(batch)
        return -reference if self.args.selection == "reference_low" else -cast(Tensor, log_probs).detach() - reference

    def _select_over_all(self, batches: list[dict[str, Any]], scores: list[Tensor]) -> list[Selection]:
        """Rank the tokens of these micro-batches with those that the other processes hold."""
        accelerator = self.accelerator
        flat = torch.cat([one.double().flatten() for one in scores])
        valid = torch.cat([_valid(batch).flatten() for batch in batches])
        own, longest = flat.numel(), int(accelerator.gather(torch.tensor([flat.numel()], device=flat.device)).max())
        flat, valid = (accelerator.gather(pad(one, (0, longest - own))) for one in (flat, valid))
        whole = select_top(flat, valid, torch.zeros_like(flat, dtype=torch.long), self._ratio())
        mine = whole.weights[accelerator.process_index * longest :][:own].split([one.numel() for one in scores])
        return [Selection(part.view_as(one), whole.thresholds) for one, part in zip(scores, mine, strict=True)]

    def _select(self, batch: dict[str, Any], log_probs: Tensor) -> Selection:
        """Select among the tokens of a micro-batch."""
        if "selection" in batch:
            return batch["selection"]
        scores = self._scores(batch, log_probs)
        if self.args.selection_scope == "global":
            return self._select_over_all([batch], [scores])[0]
        if self.args.selection_scope == "micro_batch":
            groups = torch.zeros_like(scores, dtype=torch.long)
        else:
            groups = groups_of(batch["labels"], batch.get("position_ids"))
        return select_top(scores, _valid(batch), groups, self._ratio())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training = cast(torch.nn.Module, self.model).training
        # Where all tokens count this is SFTTrainer, to the bit.
        whole = not training or self._ratio() == 1
        if not whole:
            self._add_reference(inputs)
        batch = dict(inputs)
        for name in ("reference_nll", "selection"):
            inputs.pop(name, None)

        def selecting(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            selection = self._select(batch, outputs.log_probs)
            self._measure(batch, -outputs.log_probs.detach(), selection)
            outputs.log_probs = outputs.log_probs * selection.weights
            return outputs

        with nullcontext() if whole else compacted_backward():
            return super().compute_loss(
                model if whole else selecting,
                inputs,
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )

    # What is logged, kept and saved.

    def _measure(self, batch: dict[str, Any], loss: Tensor, selection: Selection) -> None:
        """Add a micro-batch to the metrics; the sums are taken over all processes. `loss`: (B, T - 1), in nats."""
        valid, selected = _valid(batch), selection.weights > 0
        unselected = valid & ~selected
        excess = loss - _reference_of(batch) if "reference_nll" in batch else None
        thresholds = selection.thresholds[selection.thresholds.isfinite()]
        parts = [(loss, selected), (loss, unselected), (selected.float(), valid)]
        parts += [] if excess is None else [(excess, valid)]
        sums = [(values * mask).sum().double() for values, mask in parts] + [thresholds.sum()]
        counts = [mask.sum() for _, mask in parts] + [torch.tensor(len(thresholds), device=loss.device)]
        reduced = self.accelerator.reduce(torch.stack([*sums, *(count.double() for count in counts)]), "sum").tolist()
        names = ["selected_loss", "unselected_loss", "select_ratio"] + ["mean_excess"] * (excess is not None)
        for name, total, count in zip([*names, "threshold"], reduced[: len(sums)], reduced[len(sums) :], strict=True):
            if count > 0:
                self._metrics["train"][f"rho1/{name}"].append(total / count)
        self._last = (self._ratio(), batch, loss, selection)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        last, self._last = self._last, None
        if last is None or not self.is_world_process_zero():
            return
        ratio, batch, loss, selection = last

        def by_token(values: Tensor) -> Tensor:
            """A row's first token is not predicted."""
            return pad(values, (1, 0))

        first = FirstSequence(batch, by_token(_valid(batch)))
        first.note("loss", by_token(loss))
        if "reference_nll" in batch:
            first.note("reference_loss", by_token(_reference_of(batch)))
        first.note("selected", by_token(selection.weights > 0))
        found = first.sample(
            select_ratio=ratio,
            scope=self.args.selection_scope,
            selection=self.args.selection,
            reference_loss=None,
        )
        if found is not None:
            ids, figures = found
            self._samples.write(self.state.global_step, ids, figures | {"threshold": selection.thresholds[0].item()})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with hidden_adapter(self.model, _REFERENCE):
            super()._save(output_dir, state_dict)


def _reference_folder(args: Rho1Config) -> str:
    """Where the reference's adapter lies, if it is one."""
    return adapter_folder(str(args.reference_model_name_or_path), revision=args.reference_model_revision)


def _share_base(args: Rho1Config, model: PeftModel) -> bool:
    """Whether the reference is an adapter over the base model that is trained with another one, loaded alike."""
    reference = _reference_folder(args)
    in_4bit = bool(getattr(model.get_base_model(), "is_loaded_in_4bit", False))
    if not is_adapter(reference) or args.reference_dtype != "auto" or args.reference_load_in_4bit != in_4bit:
        return False
    adapter, own = PeftConfig.from_pretrained(reference), model.active_peft_config
    bases = [os.path.realpath(str(config.base_model_name_or_path)) for config in (adapter, own)]
    return bases[0] == bases[1] and adapter.revision in (None, own.revision)


def _reference_of(batch: dict[str, Any]) -> Tensor:
    """The reference's loss of each predicted token. Shape: (B, T - 1), float32."""
    return scores_of(batch, REFERENCE_NLL)[:, 1:]


def _valid(batch: dict[str, Any]) -> Tensor:
    """Whether a token is predicted, by the one before it. Shape: (B, T - 1)."""
    return scored_positions(batch["labels"])[:, 1:]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, and no random numbers drawn, for a look at the tokens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
