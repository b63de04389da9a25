"""HybridPostTrainer: GRPOTrainer with demonstrations beside its rollouts.

Four of the base's methods are wrapped, none is copied:

    _generate_and_score_completions       marks the rows, so that they can be told apart after the base's shuffle
    _prepare_inputs                       re-deals the shuffled rows: dead ones out, demonstrations in, padding trimmed
    _get_per_token_logps_and_entropies    takes the demonstrations along in the forward pass of the rollouts
    _compute_loss                         adds the demonstrations' terms to the base's loss of the rollouts

The base draws the same random numbers as ever, since rows are dropped only after its shuffle: with the gate at -1 a
run sees the rollouts that plain GRPO would see.
"""

import textwrap
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl.models.utils import disable_gradient_checkpointing

from hpt_trl.data.loading import validate_rows
from hpt_trl.errors import UserError
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.hybrid.demonstrations import check_demonstrations, demonstration_ids, rollout_encoder
from hpt_trl.methods.hybrid.routing import (
    MicroBatch,
    Plan,
    make_plan,
    refuse_what_cannot_work,
    routed_advantages,
    rows_that_must_stay,
)
from hpt_trl.methods.hybrid.terms import ROW_NORMALIZED, Scores, demonstration_terms, loggable, signed_rollouts, sum_of
from hpt_trl.rollouts.rows import Forward, Row, collate, deal, padded_area, unpad
from hpt_trl.rollouts.trainer import RolloutTrainer


class HybridPostTrainer(RolloutTrainer):
    """Hybrid Post-Training (HPT, arXiv 2509.04419): RL on prompts that the model can solve, SFT on those it cannot.

    Takes the arguments of `trl.GRPOTrainer`, with `args` a `HybridPostConfig`. A row of the dataset has a `prompt` and,
    under `args.demonstration_column`, a demonstration of the same kind (text or messages).

    Raises:
        ValueError: settings that cannot work together; the message gives the reason.
        UserError: the dataset lacks demonstrations that the strategy needs (with the row), or a reward fails.
    """

    args: HybridPostConfig
    model: PreTrainedModel
    _buffered_types = (MicroBatch, Forward)

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
        self._defer_old_logps = False
        self._generation: tuple[list[dict[str, Any]], Tensor] | None = None
        self._micro: MicroBatch | None = None
        self._rollout_scores: Scores
        self._demonstration_scores: Scores
        super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        self._encoder = rollout_encoder(self.processing_class, self.chat_template_kwargs)
        if args.uses_demonstrations and isinstance(train_dataset, Dataset):
            check_demonstrations(
                train_dataset, "train_dataset", args.demonstration_column, self._encoder, self.eos_token_ids
            )
        self._window_sums = torch.zeros(4, device=self.accelerator.device)
        self._drops_rows = args.skip_dead_rows and rows_that_must_stay(args, self.aux_loss_enabled) is None

    @property
    def _old_logps_are_known(self) -> bool:
        """The correction for vLLM needs old log-probabilities of every row; else they wait for the dead rows."""
        return self.use_vllm and self.vllm_importance_sampling_correction

    # Generation: keep what routing needs to know.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._defer_old_logps = self._drops_rows and not self._old_logps_are_known
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self._defer_old_logps = False
        batch["row"] = torch.arange(len(inputs), device=batch["prompt_ids"].device)
        self._generation = (inputs, self._rewards)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self._generation is not None:
            (examples, rewards), self._generation = self._generation, None
            self._buffered_inputs = self._route(examples, rewards, self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % len(self._buffered_inputs)]
        return inputs

    # Routing: from shuffled rollouts to micro-batches.

    def _route(
        self, examples: list[dict[str, Any]], rewards_per_func: Tensor, buffers: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Micro-batches of the generation batch: the rollouts that carry a gradient, and the demonstrations."""
        args, group = self.args, self.num_generations
        rewards = self._weighted_rewards(rewards_per_func)
        usable = [args.on_missing_demonstration == "error" or bool(e.get(args.demonstration_column)) for e in examples]
        usable = self.accelerator.gather(torch.tensor(usable, device=rewards.device)).view(-1, group)[:, 0]
        plan = make_plan(rewards.view(-1, group).float().cpu(), usable.cpu(), args, self.state.global_step)

        # Rows stay in the optimizer step in which the base would train them.
        aligned = len(buffers) % args.gradient_accumulation_steps == 0
        per_window = args.gradient_accumulation_steps if aligned else 1
        rollouts: list[list[Row]] = []
        demonstrations: list[Row] = []
        first_row = self.accelerator.process_index * len(examples)
        for number, buffer in enumerate(buffers):
            index = buffer["row"].cpu() + first_row
            buffer["advantages"] = routed_advantages(buffer["advantages"], index, plan, group)
            rollouts.append(unpad(buffer))
            for row, i in zip(rollouts[-1], index.tolist(), strict=True):
                row.window, row.prompt = number // per_window, i // group
                row.solved, row.dead = bool(plan.solved.view(-1)[i]), bool(plan.dead.view(-1)[i])
                # The process that holds a group's first rollout brings the demonstration, once.
                if i % group == 0 and plan.needs_demonstration[row.prompt]:
                    demonstrations.append(self._demonstration(row, examples[i - first_row], plan))

        filler = rollouts[0][0].filler()
        if self._drops_rows:
            kept = [row for micro in rollouts for row in micro if not row.dead]
            micros = self._deal(kept + demonstrations, len(buffers), per_window)
        else:
            micros = rollouts
            for turn, row in enumerate(sorted(demonstrations, key=lambda row: row.prompt)):
                micros[row.window * per_window + turn % per_window].append(row)
        tokens = self._log_routing(plan, micros, per_window)
        # The base gathers a metric per row, so every process needs the same number of rows.
        counts = torch.tensor([sum(not row.is_demonstration for row in micro) for micro in micros])
        counts = self.accelerator.gather(counts.to(self.accelerator.device)).view(-1, len(micros)).amax(0).tolist()
        return [
            self._micro_batch(micro, max(count, 1), filler, buffer, plan, per_window, tokens[number // per_window])
            for number, (micro, count, buffer) in enumerate(zip(micros, counts, buffers, strict=True))
        ]

    def _micro_batch(
        self,
        rows: list[Row],
        count: int,
        filler: Row,
        buffer: dict[str, Any],
        plan: Plan,
        per_window: int,
        tokens: tuple[float, float],
    ) -> dict[str, Any]:
        """The stock batch of `count` rollouts (fillers included) with its `MicroBatch` under `hybrid`."""

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
        if self._drops_rows and "old_per_token_logps" in batch and not self._old_logps_are_known:
            # Also for fillers alone: sharded models need as many forward passes on every process.
            old = Forward.of(rollouts or stock_rows, pad_token, multiple)
            batch["old_per_token_logps"] = self._old_logps(old, batch["completion_ids"].shape)
        rows_per_step = self.args.per_device_train_batch_size * per_window * self.accelerator.num_processes
        batch["hybrid"] = MicroBatch.of(
            stock_rows,
            demonstrations,
            plan,
            forward=forward,
            has_rollouts=bool(rollouts),
            rollouts=len(passed) - len(demonstrations),
            rollout_scale=count / self.args.per_device_train_batch_size,
            rows_per_step=rows_per_step,
            tokens_per_step=buffer["num_items_in_batch"].clamp(min=1) * per_window / len(self._buffered_inputs),
            prompts_per_step=rows_per_step / self.num_generations,
            sft_tokens=tokens[0],
            demonstration_tokens=tokens[1],
        )
        return batch

    def _demonstration(self, row: Row, example: dict[str, Any], plan: Plan) -> Row:
        """The demonstration of `row`'s prompt, with the coefficients that the plan gives it."""
        column = self.args.demonstration_column
        if not example.get(column):
            raise UserError(
                f"A prompt calls for its demonstration, but `{column}` is {example.get(column)!r}. Give the row a "
                f"demonstration or set `on_missing_demonstration: rl`. Prompt: {example['prompt']!r}"
            )
        demonstration = demonstration_ids(
            example, column, self._encoder, self.eos_token_ids, self.args.max_demonstration_length
        )
        device = row.completion_ids.device
        return row.with_completion(
            torch.tensor(demonstration.ids, device=device),
            # As for the turns of tools in a rollout: seen, but without a loss.
            tokens={"tool_mask": torch.tensor(demonstration.trained, device=device)},
            sft_coefficient=plan.sft[row.prompt].item(),
            off_advantage=plan.off_advantage[row.prompt].item(),
            truncated=demonstration.truncated,
        )

    def _deal(self, rows: list[Row], micro_batches: int, per_window: int) -> list[list[Row]]:
        """Deal rows to micro-batches of their optimizer step, over all processes so that none waits for another.

        Rows with images stay where they are: their features are too large to send around.
        """
        world, rank, device = self.accelerator.num_processes, self.accelerator.process_index, self.accelerator.device
        if world > 1 and not self._is_vlm:
            rows = [row.to(device) for row in gather_object([row.to("cpu") for row in rows])]
        else:
            world, rank = 1, 0
        micros: list[list[Row]] = []
        for window in range(micro_batches // per_window):
            own = [row for row in rows if row.window == window]
            slots = deal([len(row) for row in own], per_window * world)
            micros += [[own[i] for i in slot] for slot in slots[rank::world]]
        return micros

    @torch.no_grad()
    def _old_logps(self, forward: Forward, shape: torch.Size) -> Tensor:
        """Old log-probabilities of a micro-batch's rollouts, which the base would have computed for every row."""
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self.model, checkpointing):
            logps, _, _ = super()._get_per_token_logps_and_entropies(self.model, **forward.arguments)
        logps = forward.completions(logps, slice(None), shape[1])
        return torch.nn.functional.pad(logps, (0, 0, 0, shape[0] - len(logps)))

    def _log_routing(self, plan: Plan, micros: list[list[Row]], per_window: int) -> list[tuple[float, float]]:
        """Log what became of the rollouts.

        Returns:
            For each optimizer step, over all processes: tokens of the demonstrations with a supervised term, and of
            all demonstrations.
        """
        demonstrations = [row for micro in micros for row in micro if row.is_demonstration]
        lengths = [[len(row) for row in micro] for micro in micros]
        windows = len(micros) // per_window
        tokens = [0.0] * (2 * windows)
        for row in demonstrations:
            trained = int(row.tokens["tool_mask"].sum())
            tokens[row.window] += trained * (row.sft_coefficient != 0)
            tokens[windows + row.window] += trained
        counts = [
            sum(len(micro) for micro in micros),
            sum(padded_area(micro) for micro in lengths),
            sum(sum(micro) for micro in lengths),
            len(demonstrations),
            sum(row.truncated for row in demonstrations),
        ]
        sums = torch.tensor([*counts, *tokens], dtype=torch.float32, device=self.accelerator.device)
        sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        rows, area, live, demonstrated, truncated = sums[: len(counts)]
        metrics = self._metrics["train"]
        metrics["hpt/solved_mean"].append(plan.solved.float().mean().item())
        metrics["hpt/sft_fraction"].append((plan.sft != 0).float().mean().item())
        metrics["hpt/off_fraction"].append((plan.off_advantage != 0).float().mean().item())
        metrics["hpt/rows_kept"].append(rows / plan.solved.numel())
        metrics["hpt/demonstrations_truncated"].append(truncated / max(demonstrated, 1))
        if self.args.skip_dead_rows:
            metrics["hpt/padding"].append(area / live - 1 if live else 0.0)
        tokens = sums[len(counts) :]
        return list(zip(tokens[:windows], tokens[windows:], strict=True))

    # The step: one forward pass, the base's loss of the rollouts, the terms of the demonstrations.

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._defer_old_logps:
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        micro, count = self._micro, len(input_ids)
        if micro is None or micro.forward is None:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
            if micro is not None:
                self._rollout_scores = Scores(*result[:2])
            return result
        forward, live, demonstrated = micro.forward, micro.rollouts, micro.demonstration_mask.size(1)
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(model, **kwargs | forward.arguments)

        def of_rollouts(values: Tensor) -> Tensor:
            # Rows that took no part in the forward pass are fillers; their loss mask is 0.
            values = forward.completions(values, slice(live), logits_to_keep)
            return torch.nn.functional.pad(values, (0, 0, 0, count - len(values)))

        def of_demonstrations(values: Tensor) -> Tensor:
            return forward.completions(values, slice(live, None), demonstrated)

        self._rollout_scores = Scores(of_rollouts(logps), of_rollouts(entropies))
        self._demonstration_scores = Scores(of_demonstrations(logps), of_demonstrations(entropies))
        return self._rollout_scores.logps, self._rollout_scores.entropies, aux_loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "hybrid" not in inputs:  # evaluation
            return super()._compute_loss(model, inputs)
        micro: MicroBatch = inputs["hybrid"]
        processes = self.accelerator.num_processes
        metrics = self._metrics["train"]
        logged = {name: len(values) for name, values in metrics.items()}
        self._micro = micro
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._micro = None
        if not micro.has_rollouts:
            # What the base logs of fillers would pull the means of entropy and clipping towards zero.
            for name in list(metrics):
                del metrics[name][logged.get(name, 0) :]
                if not metrics[name]:
                    del metrics[name]
        if self.loss_type in ROW_NORMALIZED and micro.rollout_scale != 1:
            loss = loss * micro.rollout_scale
        terms: dict[str, Tensor] = {}
        if len(micro.demonstration_mask):
            terms = demonstration_terms(self._demonstration_scores, micro, self.args, processes)
        if micro.has_signed:
            mask = inputs["completion_mask"].float()
            terms["rl"] = signed_rollouts(self._rollout_scores, mask, micro, self.args, processes)
        self._log_losses(loggable(loss, terms), micro)
        return sum_of(loss, terms)

    def _log_losses(self, parts: Tensor, micro: MicroBatch) -> None:
        """Add up the terms of an optimizer step and log them at its end, averaged as the gradients are."""
        self._window_sums = self._window_sums + parts
        if not self.accelerator.sync_gradients:
            return
        rl, off, sft, nll = self.accelerator.reduce(self._window_sums, reduction="sum").tolist()
        self._window_sums = torch.zeros_like(self._window_sums)
        metrics, processes = self._metrics["train"], self.accelerator.num_processes
        metrics["hpt/rl_loss"].append(rl / processes)
        metrics["hpt/off_loss"].append(off / processes)
        metrics["hpt/sft_loss"].append(sft / processes)
        if micro.demonstration_tokens:
            metrics["hpt/demo_nll"].append(nll / micro.demonstration_tokens)
