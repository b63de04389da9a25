"""ValueTrainer: RewardTrainer with a value for every token.

What is wrapped of the base, and why:

    __init__             makes the value model
    _prepare_dataset     encodes pairs with a mask of the solutions' tokens
    compute_loss         takes the lambda-returns for targets where the objective says so, and measures the values
    create_optimizer     gives the head its own learning rate
    _save, _load_...     keep trunk and head apart, as a value model's folder has them

A pair's score is the mean value over its output, which the base compares, counts and logs; nothing of it is copied.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import RewardTrainer

from hpt_trl.data.rendering import Encoder
from hpt_trl.errors import UserError
from hpt_trl.methods.critic.config import ValueConfig
from hpt_trl.methods.critic.objectives import diagnostics, lambda_at, regression_loss
from hpt_trl.methods.reward.trainer import ScoringRewardTrainer
from hpt_trl.methods.signatures import takes_arguments_of
from hpt_trl.models.adapters import keep_adapter_type
from hpt_trl.models.fsdp2 import mend_fsdp2
from hpt_trl.models.learning_rates import give_learning_rate, refuse_ready_optimizer
from hpt_trl.models.value_model import HeadSettings, ValueModel, new_value_model, split_state
from hpt_trl.models.whole_models import resolve_model

SIDES = ("chosen", "rejected")

logger = logging.getLogger(__name__)


class _Objective(RewardTrainer):
    """The base with another loss and more metrics, below those that measure held-out rows one by one."""

    args: ValueConfig

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mask = inputs["output_mask"]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        training = cast(torch.nn.Module, self.model).training
        if self.args.objective == "regression":
            # Chosen outputs first, then rejected ones.
            rewards = torch.arange(len(mask), device=mask.device) < len(mask) // 2
            loss = regression_loss(
                outputs.token_values,
                mask,
                rewards.float(),
                gamma=self.args.return_gamma,
                lam=self._lambda() if training else self.args.return_lambda,
                loss=self.args.regression_loss,
                beta=self.args.smooth_l1_beta,
            )
        metrics = self._metrics["train" if training else "eval"]
        for name, values in diagnostics(outputs.token_values, mask).items():
            metrics[f"critic/{name}"].append(self.accelerator.gather(values.mean()).mean().item())
        return (loss, outputs) if return_outputs else loss

    def _lambda(self) -> float:
        args = self.args
        return lambda_at(
            self.state.global_step,
            start=args.return_lambda_start,
            end=args.return_lambda,
            schedule=args.return_lambda_schedule,
            hold_steps=args.return_lambda_hold_steps,
            decay_steps=args.return_lambda_decay_steps,
        )


class ValueTrainer(ScoringRewardTrainer, _Objective):
    """Trains a value model on pairs of a correct and an incorrect answer, on TRL's RewardTrainer.

    Takes the arguments of `trl.RewardTrainer`, with `args` a `ValueConfig` and `model` a name, whose trunk then gets a
    new head (and LoRA by `peft_config`), or a `ValueModel`. Rows are comparisons (prompt, chosen, rejected), or are
    encoded already (`chosen_ids` and `chosen_trained`, 1 for the output's tokens, and the same of `rejected`).

    Metrics beside the base's: `critic/variance`, `critic/spikiness` and `critic/position_correlation` of the values
    inside of an output (see `objectives.diagnostics`), the mean over the outputs.

    Raises:
        UserError: a checkpoint without its value head, or rows that cannot be encoded.
        ValueError: arguments that do not work together.
    """

    _tag_names = ["trl", "critic"]
    _name = "Critic"

    args: ValueConfig

    @takes_arguments_of(RewardTrainer, ValueConfig)
    def __init__(self, model: Any, args: ValueConfig | None = None, **kwargs: Any):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = ValueConfig(f"{str(name).rstrip('/').split('/')[-1]}-Critic")
        adapter, quantization = kwargs.pop("peft_config", None), kwargs.pop("quantization_config", None)
        self.trunk_name = model if isinstance(model, str) else str(model.config._name_or_path)
        if isinstance(model, str):
            model = _new_model(model, args, adapter, quantization)
        elif not isinstance(model, ValueModel):
            raise ValueError(f"`model` is a {type(model).__name__}; pass a name, or a `ValueModel`.")
        elif adapter is not None or quantization is not None:
            raise ValueError("`peft_config` and `quantization_config` are for a model that is named; drop them.")
        if kwargs.get("processing_class") is None:
            given = cast(dict[str, Any], args.model_init_kwargs or {})
            kwargs["processing_class"] = AutoTokenizer.from_pretrained(
                resolve_model(self.trunk_name),
                revision=given.get("revision"),
                trust_remote_code=given.get("trust_remote_code", args.trust_remote_code),
            )
        # What the base asks of its own models.
        model.config.num_labels = 1
        if model.is_adapted and args.gradient_checkpointing:
            model.trunk.enable_input_require_grads()
        # They were for the trunk; the base would warn that it does not use them.
        loading, args.model_init_kwargs = args.model_init_kwargs, None
        mend_fsdp2()
        super().__init__(model, args, **kwargs)
        args.model_init_kwargs = loading
        refuse_ready_optimizer(self, "head_learning_rate")
        if model.is_quantized:
            # The base casts all that is trained; the head is no adapter.
            model.head.to(torch.float32)
        if model.is_adapted:
            keep_adapter_type(model.trunk)
        self.data_collator = WithOutputMasks(self.data_collator)

    @property
    def _reading(self) -> Any:
        return cast(ValueModel, self.model).trunk

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # The base's own encoding does not say where the output begins; rows that are encoded it leaves as they are.
        rows = encoded_pairs(dataset, Encoder(processing_class, comparisons=True), args)
        if args.objective == "regression" and "margin" in (rows.column_names or ()):
            logger.warning("%s: the rows' `margin` is not used by `objective: regression`.", dataset_name)
        return super()._prepare_dataset(rows, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        self._signature_columns: Any = [*columns, *(f"{side}_trained" for side in SIDES)]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made:
            head = cast(ValueModel, self.accelerator.unwrap_model(self.model)).head
            give_learning_rate(optimizer, head.parameters(), self.args.head_learning_rate)
        return optimizer

    # Files: the trunk as any model, the head beside it.

    @contextmanager
    def _trunk_alone(self) -> Iterator[ValueModel]:
        """While open, the model is the trunk: what the base writes and reads."""
        whole: Any = self.model
        self.model = whole.trunk
        try:
            yield whole
        finally:
            self.model = whole

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """`state_dict`: what FSDP and DeepSpeed gathered, head included; None where the weights are whole."""
        trunk, head = (None, None) if state_dict is None else split_state(state_dict)
        with self._trunk_alone() as whole:
            super()._save(output_dir, trunk)
        if self.args.should_save:
            whole.save_head(output_dir or str(self.args.output_dir), head)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # its own files hold the head as a part of the model, like DeepSpeed's
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._trunk_alone() as whole:
            super()._load_from_checkpoint(resume_from_checkpoint)
        whole.load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        with self._trunk_alone() as whole:
            super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            whole.load_head(self.state.best_model_checkpoint)


class WithOutputMasks:
    """A collator that adds which tokens are the outputs', `output_mask` (pairs' chosen ones first, then rejected)."""

    def __init__(self, collate: Any):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        mask = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        rows = [example[f"{side}_trained"] for side in SIDES for example in examples]
        for place, trained in enumerate(rows):
            mask[place, : len(trained)] = torch.tensor(trained, dtype=torch.bool)
        return {**batch, "output_mask": mask}


def encoded_pairs(rows: Any, encoder: Encoder, args: ValueConfig) -> Any:
    """Rows with the ids of both answers, prompt included, and which of them are the answer's.

    Args:
        rows: a dataset, also one that is streamed; None stays None.

    Raises:
        UserError: an answer cannot be encoded as it is written, or rows are encoded in part.
    """
    if rows is None:
        return rows
    columns = rows.column_names or list(next(iter(rows)))
    found = [name for side in SIDES for name in (f"{side}_ids", f"{side}_trained")]
    missing = [name for name in found if name not in columns]
    if not missing:
        return rows
    if len(missing) < len(found):
        raise UserError(
            f"rows that are encoded already need the columns {', '.join(found)}; {', '.join(missing)} is missing. In "
            "`_trained` is 1 for each token of the answer and 0 for the prompt's. Or pass prompt, chosen and rejected."
        )

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        found = {side: encoder.answered(row, side) for side in SIDES}
        return {f"{side}_ids": one.ids for side, one in found.items()} | {
            f"{side}_trained": one.trained for side, one in found.items()
        }

    settings = {"num_proc": args.dataset_num_proc, "desc": "Encoding pairs"} if isinstance(rows, Dataset) else {}
    return rows.map(encode, **settings)


def _new_model(name: str, args: ValueConfig, adapter: Any, quantization: Any) -> ValueModel:
    if adapter is not None and adapter.is_prompt_learning:
        raise UserError("prompt learning puts tokens without text before each row; use LoRA.")
    # The head is drawn, and an adapter with it.
    set_seed(args.seed)
    loading: dict[str, Any] = dict(cast(dict[str, Any], args.model_init_kwargs or {}))
    loading.setdefault("trust_remote_code", args.trust_remote_code)
    # As RewardTrainer loads: in the type of a checkpoint small steps would be lost.
    loading.setdefault("dtype", "float32")
    if quantization is not None:
        loading["quantization_config"] = quantization
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        loading["device_map"] = None
    settings: dict[str, Any] = {}
    spread = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if adapter is not None and spread and quantization is None:
        # Of two types ZeRO-3 would gather parameters into buffers of one.
        settings["autocast_adapter_dtype"] = False
        if args.gradient_checkpointing:
            more = cast(dict[str, Any], args.gradient_checkpointing_kwargs or {})
            args.gradient_checkpointing_kwargs = {**more, "use_reentrant": True}
    return new_value_model(
        name,
        lambda width: HeadSettings(width, "mlp", args.value_head_dropout, args.first_value, args.objective),
        adapter=adapter,
        adapter_settings=settings,
        **loading,
    )
