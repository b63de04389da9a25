"""HybridPostTrainer: GRPOTrainer with demonstrations beside its rollouts.

Five of the base's methods are wrapped, none is copied:

    _generate_and_score_completions       marks the rows, so that they can be told apart after the base's shuffle
    _prepare_inputs                       re-deals the shuffled rows: dead ones out, demonstrations in, padding trimmed
    _calculate_rewards                    notes what the rewards saw, to grade demonstrations alike
    _get_per_token_logps_and_entropies    takes the demonstrations along in the forward pass of the rollouts
    _compute_loss                         adds the demonstrations' terms to the base's loss of the rollouts

The base draws the same random numbers as ever, since rows are dropped only after its shuffle: with the gate at -1 a
run sees the rollouts that plain GRPO would see.
"""

import logging
import textwrap
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from hpt_trl.data.loading import validate_rows
from hpt_trl.data.rendering import Encoder
from hpt_trl.methods.hybrid.acted import ActedDemonstrations
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.dealing import dealt, routed_rows
from hpt_trl.methods.hybrid.demonstrations import Demonstrations, check_demonstrations
from hpt_trl.methods.hybrid.dropping import NOTHING, exact_dropping
from hpt_trl.methods.hybrid.grading import Sampled, Scored, grade, log_grades, unpadded_prompts
from hpt_trl.methods.hybrid.metrics import StepLosses, log_routing
from hpt_trl.methods.hybrid.routing import (
    Coefficients,
    MicroBatch,
    Plan,
    coefficients_of,
    count_rows,
    make_plan,
    refuse_what_cannot_work,
)
from hpt_trl.methods.hybrid.samples import EVALUATION, note_rollouts, uses_of
from hpt_trl.methods.hybrid.terms import ROW_NORMALIZED, Scores, demonstration_terms, loggable, signed_rollouts, sum_of
from hpt_trl.methods.signatures import takes_arguments_of
from hpt_trl.models.loading import positions_of
from hpt_trl.rewards.success import success_index
from hpt_trl.rollouts.acting import ActingTrainer
from hpt_trl.rollouts.rows import Forward, Row, collate, loss_mask
from hpt_trl.rollouts.step_metrics import lengths_of, take_back

logger = logging.getLogger(__name__)


class HybridPostTrainer(ActingTrainer):
    """Hybrid Post-Training (HPT, arXiv 2509.04419): RL on prompts that the model can solve, SFT on those it cannot.

    Takes the arguments of `trl.GRPOTrainer`, with `args` a `HybridPostConfig`. A row of the dataset has a `prompt` and,
    under `args.demonstration_column`, a demonstration of the same kind (text or messages).

    Raises:
        ValueError: settings that cannot work together; the message gives the reason.
        UserError: the dataset lacks demonstrations that the strategy needs (with the row), or a reward fails.
    """

    args: HybridPostConfig
    model: PreTrainedModel
    _buffered_types = (*ActingTrainer._buffered_types, MicroBatch, Forward)

    _tag_names = ["trl", "hpt"]
    _name = "HPT"
    _paper = {
        "title": "Towards a Unified View of Large Language Model Post-Training",
        "id": "2509.04419",
        "citation": textwrap.dedent("""\
            @article{lv2025unified,
                title  = {{Towards a Unified View of Large Language Model Post-Training}},
                author = {Xingtai Lv and others},
                year   = 2025,
                eprint = {arXiv:2509.04419},
            }"""),
    }

    @takes_arguments_of(GRPOTrainer, HybridPostConfig, "environment")
    def __init__(
        self,
        model: "str | PreTrainedModel",
        reward_funcs: Any = None,
        args: HybridPostConfig | None = None,
        train_dataset: Any = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = HybridPostConfig(f"{name.split('/')[-1]}-HPT")
        refuse_what_cannot_work(args, kwargs)
        if args.uses_demonstrations and isinstance(train_dataset, Dataset):
            validate_rows(
                train_dataset,
                "train_dataset",
                demonstration_column=args.demonstration_column,
                needs_demonstration=args.on_missing_demonstration == "error",
            )
        self._generation: Scored | None = None
        self._sampled: Sampled
        self._demonstrations: Demonstrations | ActedDemonstrations
        self._told_of_grades = False
        self._micro: MicroBatch | None = None
        self._demonstration_scores: Scores
        super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        self._success_index = success_index(self.reward_func_names, args.success_reward)
        self._encoder = Encoder(
            self.processing_class, self.chat_template_kwargs, reads_rows=False, end_ids=self.eos_token_ids
        )
        if args.uses_demonstrations and isinstance(train_dataset, Dataset) and self._acting is None:
            check_demonstrations(
                train_dataset,
                "train_dataset",
                args.demonstration_column,
                self._encoder,
                max_length=args.max_demonstration_length,
                positions=positions_of(self.model.config),
            )
        self._step_losses = StepLosses(self.accelerator)
        exact = exact_dropping(args, self.aux_loss_enabled)
        self._dropping = exact if args.skip_dead_rows else NOTHING
        # A bonus that leaves gated rollouts out where they are not computed does so where they are.
        self._masks_gated = args.entropy_coef != 0 and exact.gated and not args.skip_dead_rows
        if self._dropping.reason:
            logger.info("Rollouts without an advantage stay in the training: %s.", self._dropping.reason)

    @property
    def _finds_old_logps_later(self) -> bool:
        return False  # but by a plan, below

    @property
    def _leaves_old_logps_out(self) -> bool:
        return super()._finds_old_logps_later or (self._dropping.gated and not self._corrects_sampling)

    # Generation: keep what routing needs to know.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            self._note_rollouts(EVALUATION, inputs)
            return super()._generate_and_score_completions(inputs)
        batch = super()._generate_and_score_completions(inputs)
        batch["row"] = torch.arange(len(inputs), device=batch["prompt_ids"].device)
        sampled, tokens = self._sampled, batch["num_items_in_batch"]
        if self.args.uses_union:
            sampled.prompt_ids = unpadded_prompts(batch)
            if self.mask_truncated_completions:
                # The demonstrations' weight must not grow as rollouts are cut, and so leave the base's count of tokens.
                tokens = self.accelerator.reduce(tokens.new_tensor(sampled.tokens), reduction="sum")
        self._generation = Scored(sampled, self._rewards, self._each_reward[:, self._success_index], tokens)
        return batch

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._sampled = Sampled(inputs, prompts, prompt_ids=[], tokens=self._drawn_tokens(completion_ids_list))
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self._generation is not None:
            generation, self._generation = self._generation, None
            self._buffered_inputs = self._route(generation, self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % len(self._buffered_inputs)]
        return inputs

    def _note_rollouts(self, modes: list[str] | str, rows: list[dict[str, Any]]) -> None:
        if self.log_completions or self.args.report_to:
            note_rollouts(self._logs["extra"], modes, rows, self.args.demonstration_column)

    @property
    def _deals_rows(self) -> bool:
        return False  # but by a plan, below

    # Routing: from shuffled rollouts to micro-batches.

    def _route(self, generation: Scored, buffers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Micro-batches of the generation batch: the rollouts that carry a gradient, and the demonstrations."""
        args = self.args
        plan = self._planned(generation)
        # Rows stay in the optimizer step in which the base would train them.
        aligned = len(buffers) % args.gradient_accumulation_steps == 0
        per_window = args.gradient_accumulation_steps if aligned else 1
        rollouts, demonstrations = routed_rows(
            buffers,
            plan,
            self._demonstrations,
            group=self.num_generations,
            first_row=self.accelerator.process_index * len(generation.sampled.inputs),
            per_window=per_window,
            masks_gated=self._masks_gated,
        )
        filler = rollouts[0][0].filler()
        # Rows with images stay where they are: their features are too large to send around. So do contexts.
        accelerator = None if self._is_vlm or self._acting is not None else self.accelerator
        micros = dealt(
            rollouts, demonstrations, self._dropping, per_window, accelerator, by_prompt=self.is_padding_free
        )
        pads = None if not args.skip_dead_rows else not self.is_padding_free
        tokens = log_routing(self._metrics["train"], plan, micros, per_window, self.accelerator, pads)
        # The base gathers a metric per row, so every process needs the same number of rows.
        live = [sum(not row.is_demonstration for row in micro) for micro in micros]
        widest, live_of_all, totals = count_rows(live, buffers, per_window, self.accelerator)
        return [
            self._micro_batch(
                micro,
                # Where rows stay where they are, a mean over the rows of a micro-batch is one over all of them.
                max(widest[number], 1) if self._dropping.flat else len(rollouts[number]),
                filler,
                buffer,
                per_window,
                generation.tokens,
                tokens[number // per_window],
                is_first=number < per_window,
                rollouts_of_all=live_of_all[number],
                totals=totals[number // per_window],
                ends_step=number % per_window == per_window - 1,
            )
            for number, (micro, buffer) in enumerate(zip(micros, buffers, strict=True))
        ]

    def _planned(self, generation: Scored) -> Plan:
        """What happens to every row, by the rewards of all processes."""
        args, group, examples = self.args, self.num_generations, generation.sampled.inputs
        success = generation.successes.view(-1, group).float().cpu()
        rewards = self._weighted_rewards(generation.rewards).view(-1, group).float().cpu()
        usable = [args.on_missing_demonstration == "error" or bool(e.get(args.demonstration_column)) for e in examples]
        usable = self.accelerator.gather(torch.tensor(usable, device=generation.rewards.device)).view(-1, group)[:, 0]
        coefficients = coefficients_of(success, usable.cpu(), args, self.state.global_step)
        if self._acting is None:
            self._demonstrations = Demonstrations(
                examples, args.demonstration_column, self._encoder, args.max_demonstration_length
            )
        else:
            self._demonstrations = ActedDemonstrations(examples, args.demonstration_column, self._acting)
        demonstration_rewards = self._demonstration_rewards(generation.sampled, rewards, coefficients)
        plan = make_plan(rewards, success, demonstration_rewards, coefficients, args)
        self._note_rollouts(uses_of(plan), examples)
        return plan

    def _micro_batch(
        self,
        rows: list[Row],
        count: int,
        filler: Row,
        buffer: dict[str, Any],
        per_window: int,
        all_tokens: Tensor,
        tokens: tuple[float, float],
        *,
        is_first: bool,
        **of_all_processes: Any,
    ) -> dict[str, Any]:
        """The stock batch of `count` rollouts (fillers included) with its `MicroBatch` under `hybrid`.

        Args:
            is_first: it is trained in the first optimizer step of the generation batch.
        """
        rollouts = [row for row in rows if not row.is_demonstration]
        demonstrations = [row for row in rows if row.is_demonstration]
        stock_rows = rollouts + [filler] * (count - len(rollouts))
        pad_token, multiple = self._tokenizer.pad_token_id, self.pad_to_multiple_of
        batch, forward = buffer, None
        if self.args.skip_dead_rows:
            batch = collate(stock_rows, pad_token, multiple) | {"num_items_in_batch": buffer["num_items_in_batch"]}
        passed = rollouts + demonstrations or stock_rows
        if self.args.skip_dead_rows or demonstrations:
            forward = Forward.of(passed, pad_token, multiple)
        if self._leaves_old_logps_out and "old_per_token_logps" in batch:
            if is_first and self.pads_no_more:
                # The update finds them.
                del batch["old_per_token_logps"]
            else:
                # Also for fillers alone: sharded models need as many forward passes on every process.
                old = Forward.of(rollouts or stock_rows, pad_token, multiple)
                batch["old_per_token_logps"] = self._old_logps(old, batch["completion_ids"].shape)
        rows_per_step = self.args.per_device_train_batch_size * per_window * self.accelerator.num_processes
        batch["hybrid"] = MicroBatch.of(
            stock_rows,
            demonstrations,
            forward=forward,
            has_rollouts=bool(rollouts),
            forwarded=len(passed) - len(demonstrations),
            rollout_scale=count / self.args.per_device_train_batch_size,
            rows_per_step=rows_per_step,
            tokens_per_step=all_tokens.clamp(min=1) * per_window / len(self._buffered_inputs),
            prompts_per_step=rows_per_step / self.num_generations,
            sft_tokens=tokens[0],
            demonstration_tokens=tokens[1],
            **of_all_processes,
        )
        return batch

    def _demonstration_rewards(self, sampled: Sampled, rewards: Tensor, coefficients: Coefficients) -> Tensor:
        """Reward of each demonstration with an off-policy term, over all processes; NaN of the others."""
        wanted, value = coefficients.off != 0, self.args.demonstration_reward
        if value != "graded":
            graded = torch.where(wanted, float(value), torch.nan)
        else:
            graded = grade(
                wanted.tolist(),
                self.num_generations,
                len(sampled.inputs),
                self.accelerator.num_processes,
                self.accelerator.process_index,
                as_rollouts=self._demonstrations.as_rollouts(sampled),
                rewards_of=self._grades,
            )
        line = log_grades(self._metrics["train"], rewards, graded)
        if line is not None and not self._told_of_grades and self.accelerator.is_main_process:
            logger.warning(line)
            self._told_of_grades = True
        return graded

    def _grades(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], ids: list[list[int]]
    ) -> Tensor:
        """Weighted rewards of completions that are no rollouts: nothing of them is logged with those."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        return self._weighted_rewards(rewards)

    @torch.no_grad()
    def _old_logps(self, forward: Forward, shape: torch.Size) -> Tensor:
        """Old log-probabilities of a micro-batch's rollouts, which the base would have computed for every row."""
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self.model, checkpointing):
            logps, _, _ = super()._get_per_token_logps_and_entropies(self.model, **forward.arguments)
        logps = forward.completions(logps, slice(None), shape[1])
        return torch.nn.functional.pad(logps, (0, 0, 0, shape[0] - len(logps)))

    # The step: one forward pass, the base's loss of the rollouts, the terms of the demonstrations.

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        micro, count = self._micro, len(input_ids)
        if micro is None or micro.forward is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        forward, live, demonstrated = micro.forward, micro.forwarded, micro.demonstration_mask.size(1)
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(model, **kwargs | forward.arguments)

        def of_rollouts(values: Tensor) -> Tensor:
            # Rows that took no part in the forward pass are fillers; their loss mask is 0.
            values = forward.completions(values, slice(live), logits_to_keep)
            return torch.nn.functional.pad(values, (0, 0, 0, count - len(values)))

        def of_demonstrations(values: Tensor) -> Tensor:
            return forward.completions(values, slice(live, None), demonstrated)

        self._scored = of_rollouts(logps), of_rollouts(entropies)
        self._demonstration_scores = Scores(of_demonstrations(logps), of_demonstrations(entropies))
        return *self._scored, aux_loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "hybrid" not in inputs:  # evaluation
            return super()._compute_loss(model, inputs)
        micro: MicroBatch = inputs["hybrid"]
        processes = self.accelerator.num_processes
        metrics = self._metrics["train"]
        logged = lengths_of(metrics)
        self._micro = micro
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._micro = None
        scores = Scores(*self._scored)
        if self._dropping.gated:
            self._step_metrics.add(
                scores.logps,
                scores.entropies,
                inputs,
                micro.places,
                take_back(metrics, logged),
                metrics,
                computed=micro.forwarded * micro.has_rollouts,
                of_all=micro.rollouts_of_all,
            )
        if self.loss_type in ROW_NORMALIZED and micro.rollout_scale != 1:
            loss = loss * micro.rollout_scale
        terms: dict[str, Tensor] = {}
        if len(micro.demonstration_mask):
            terms = demonstration_terms(self._demonstration_scores, micro, self.args, processes)
        if micro.has_signed:
            terms["rl"] = signed_rollouts(scores, loss_mask(inputs), micro, self.args, processes)
        self._step_losses.add(loggable(loss, terms), micro, metrics)
        return sum_of(loss, terms)
