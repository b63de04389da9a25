"""PPOTrainer: GRPOTrainer with a learned critic.

What is wrapped of the base, and why:

    create_optimizer, training_step       give the critic a learning rate of its own, and steps in which it learns alone
    _generate_and_score_completions       adds old log-probabilities, values, returns and GAE advantages to the rollouts
    _get_per_token_logps_and_entropies    asks the critic in the same forward pass, of rows without a gap
    _compute_loss                         adds the value loss to the base's clipped surrogate
    _generate, _save, ...                 keep the critic out of vLLM and out of the model's files, and save it beside

The base generates, scores, masks tool outputs, corrects for vLLM, clips and accumulates; nothing of it is copied.
"""

import json
import math
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from hpt_trl.methods.ppo.config import PPOConfig, refuse_what_cannot_work
from hpt_trl.methods.ppo.critics.making import make_critic, scoring_model
from hpt_trl.methods.ppo.estimator import (
    KLController,
    advantages_and_returns,
    explained_variance,
    generalized_advantages,
    mean_error,
    normalized_scores,
    token_rewards,
    value_loss,
    whiten,
)
from hpt_trl.methods.ppo.reference import REFERENCE_ADAPTER, Reference
from hpt_trl.methods.signatures import takes_arguments_of
from hpt_trl.models.adapters import hidden_adapter
from hpt_trl.models.learning_rates import give_learning_rate, refuse_ready_optimizer
from hpt_trl.models.sharded_weights import add_to, reshard
from hpt_trl.rollouts.dealing import deal, prompts_of
from hpt_trl.rollouts.rows import Forward, Row, loss_mask, unpad
from hpt_trl.rollouts.trainer import RolloutTrainer

_CONTROLLER_FILE = "kl_controller.json"
# Log-probabilities, entropies and a load-balancing loss.
_Found = tuple[Tensor, Tensor | None, Tensor | None]
_UPDATE_METRICS = ("value_loss", "value_clipfrac", "clipfrac", "ratio", "approx_kl")


class PPOTrainer(RolloutTrainer):
    """Proximal Policy Optimization with a learned critic (arXiv 1707.06347; for language models 1909.08593).

    Takes the arguments of `trl.GRPOTrainer`, with `args` a `PPOConfig`; rewards are functions, reward models or both.
    The reference of the KL term is the policy as it was passed: with LoRA the model without (or with the initial)
    adapter, otherwise a frozen copy.

    Raises:
        ValueError: settings that cannot work together; the message gives the reason.
        UserError: a reward fails, or a checkpoint lacks its value head.
    """

    args: PPOConfig
    model: PreTrainedModel

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": textwrap.dedent("""\
            @article{schulman2017proximal,
                title  = {{Proximal Policy Optimization Algorithms}},
                author = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
                year   = 2017,
                eprint = {arXiv:1707.06347},
            }"""),
    }

    @takes_arguments_of(GRPOTrainer, PPOConfig)
    def __init__(
        self, model: "str | PreTrainedModel", reward_funcs: Any = None, args: PPOConfig | None = None, **kwargs: Any
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = PPOConfig(f"{name.split('/')[-1]}-PPO")
        refuse_what_cannot_work(args)
        # DDP would look for the critic in the model's output, which has only the policy's part.
        args.ddp_find_unused_parameters = False
        passed_adapter = isinstance(model, PeftModel)
        super().__init__(model, reward_funcs, args, **kwargs)
        self._reference: Reference | None = None
        if args.kl_coef != 0.0:
            self._reference = Reference(self, model, passed_adapter)
            self.ref_model = self._reference.model
        if args.critic_learning_rate is not None:
            refuse_ready_optimizer(self, "critic_learning_rate", self.optimizer)
        scoring = scoring_model(self.reward_funcs, self.reward_weights.tolist(), self._tokenizer)
        self._critic = make_critic(self.model, model, args, scoring)
        self._kl_controller = KLController(
            args.kl_coef,
            adaptive=args.kl_controller == "adaptive",
            target=args.kl_target,
            horizon=args.kl_horizon,
        )
        self._forward: Forward | None = None
        self._values: Tensor  # of the last forward pass, in its batch's layout
        self._base_asks = False  # whether the base's own pass over the rollouts is to find their values as well
        self._window_sums = torch.zeros(len(_UPDATE_METRICS) + 1, device=self.accelerator.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made, rate = self.optimizer is None, self.args.critic_learning_rate
        optimizer = super().create_optimizer(*args, **kwargs)
        if made and rate is not None:
            give_learning_rate(optimizer, self._critic.parameters().values(), rate)
        return optimizer

    def _all_sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum")

    # Rollouts: scores, values, advantages.

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        # All of it: weights go to vLLM before a turn, and before a `rollout_func`. Elsewhere it is not in the way.
        with self._critic.detached() if self.use_vllm else nullcontext():
            return super()._generate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        args = self.args
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._base_asks = known = self._corrects_sampling
        batch = super()._generate_and_score_completions(inputs)
        scores = self._scores(batch)
        if scores.isnan().any():
            # A rollout without a score teaches nothing: none of its tokens counts as the policy's own.
            own = batch.get("tool_mask", torch.ones_like(batch["completion_mask"]))
            batch["tool_mask"] = own * (~scores.isnan()).unsqueeze(1).to(own.dtype)
            scores = scores.nan_to_num(0.0)
        mask = loss_mask(batch)
        old_logps, values, ref_logps = self._score_rollouts(batch, known=known)
        rewards = token_rewards(old_logps, ref_logps, mask, scores, self._kl_controller.coefficient)
        if args.critic_calibration and self._step == 0:
            values = self._calibrated(rewards, values, mask)
        advantages, returns = advantages_and_returns(
            rewards, values, mask, args.gamma, args.lam, args.critic_lam, args.length_adaptive_alpha
        )
        self._log_rollouts(mask, scores, old_logps, ref_logps, values, returns)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, self._all_sum)
        batch |= {"old_per_token_logps": old_logps, "advantages": advantages, "values": values, "returns": returns}
        return batch

    def _calibrated(self, rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The values with the mean of what was earned; so the critic's bias is from here on."""
        _, earned = generalized_advantages(rewards, values, mask, self.args.gamma, 1.0)
        error = mean_error(values, earned, mask, self._all_sum)
        reshard(self.model)
        add_to(self._critic.head.last.bias, error.item())
        return values + error * mask

    def _scores(self, batch: dict[str, Any]) -> Tensor:
        """Score of each local completion: the weighted reward, normalized as the settings say; NaN without one."""
        args, ids = self.args, batch["completion_ids"]
        rewards = self._weighted_rewards(self._rewards).float()
        if args.missing_eos_penalty is not None:
            last = batch["completion_mask"].sum(1, keepdim=True).clamp(min=1) - 1
            ended = torch.isin(ids.gather(1, last), torch.tensor(self.eos_token_ids, device=ids.device))
            rewards = rewards - args.missing_eos_penalty * (~self.accelerator.gather(ended[:, 0])).float()
        if self.mask_truncated_completions:
            # What is not trained on says nothing about the others either.
            rewards[self.accelerator.gather(loss_mask(batch).sum(1)) == 0] = torch.nan
        scores = normalized_scores(
            rewards, self.num_generations, args.score_centering, args.score_scaling, args.score_clip
        )
        first = self.accelerator.process_index * len(ids)
        return scores[first : first + len(ids)]

    @torch.no_grad()
    def _score_rollouts(self, batch: dict[str, Any], *, known: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Old log-probabilities, values and the reference's log-probabilities, each (rollouts, completion tokens).

        Args:
            known: the base's pass has found the first two.
        """
        rows, width = self._rows_of(batch), batch["completion_ids"].size(1)
        prompts = prompts_of(rows) if self.is_padding_free else None
        at_once = self.args.per_device_train_batch_size * self._at_once
        slots = deal([len(row) for row in rows], max(1, math.ceil(len(rows) / at_once)), prompts)
        forwards = [(slot, self._forward_of([rows[i] for i in slot])) for slot in slots]
        zeros = torch.zeros(batch["completion_ids"].shape, device=batch["completion_ids"].device)
        old_logps, values, ref_logps = zeros, zeros.clone(), None
        if known:
            mask = batch["completion_mask"]
            old_logps, values = batch["old_per_token_logps"] * mask, self._values * mask
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self.model, checkpointing):
            for slot, forward in () if known else forwards:
                logps, _, _, of_critic = self._pass(self.model, forward, width)
                old_logps[slot], values[slot] = logps, of_critic
            if self.args.kl_coef != 0.0:
                ref_logps = torch.zeros_like(zeros)
                assert self._reference is not None
                with self._reference.asked(self.accelerator.unwrap_model(self.model)):
                    for slot, forward in forwards:
                        logps, _, _ = super()._get_per_token_logps_and_entropies(
                            self.ref_model or self.model, **forward.arguments
                        )
                        ref_logps[slot] = forward.completions(logps, slice(None), width)
        return old_logps, values, ref_logps

    @property
    def _deals_rows(self) -> bool:
        return True

    @property
    def _finds_old_logps_later(self) -> bool:
        return False

    @property
    def _leaves_old_logps_out(self) -> bool:
        # They come with the values; where the base's correction for vLLM needs them before, values come with them.
        return not self._corrects_sampling

    def _forward_of(self, rows: list[Row]) -> Forward:
        return Forward.of(rows, self._tokenizer.pad_token_id, self.pad_to_multiple_of)

    def _pass(
        self, model: Any, forward: Forward, width: int, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """One forward pass of policy and critic.

        Returns:
            Log-probabilities, entropies (None if not asked for), the load-balancing loss of a mixture of experts, and
            values; per token (rows, width) from the completion's first token on, 0 after its end.
        """
        ask = partial(super()._get_per_token_logps_and_entropies, model, **kwargs | forward.arguments)
        (logps, entropies, aux_loss), values = self._with_values(ask, forward.arguments["logits_to_keep"])
        every = slice(None)
        entropies = None if entropies is None else forward.completions(entropies, every, width)
        return (
            forward.completions(logps, every, width),
            entropies,
            aux_loss,
            forward.completions(values, every, width),
        )

    def _with_values(self, ask: Callable[[], _Found], kept: int) -> tuple[_Found, Tensor]:
        """What the policy is asked for, and the values of the last tokens that it reads, (rows, `kept`)."""
        with self._critic.asked() as chunks:
            found = ask()
        # The last position predicts a token that is not there.
        return found, torch.cat([chunk[:, :-1][:, -kept:] for chunk in chunks])

    def _log_rollouts(
        self,
        mask: Tensor,
        scores: Tensor,
        old_logps: Tensor,
        ref_logps: Tensor | None,
        values: Tensor,
        returns: Tensor,
    ) -> None:
        """Log the rollouts as they are before the update, and steer the KL coefficient by them."""
        scored = (mask.sum(1) > 0).float()
        completions, tokens = self._all_sum(torch.stack([scored.sum(), mask.sum()]))
        metrics = self._metrics["train"]
        metrics["ppo/score"].append((self._all_sum((scores * scored).sum()) / completions).item())
        metrics["ppo/returns_mean"].append((self._all_sum((returns * mask).sum()) / tokens).item())
        metrics["ppo/values_mean"].append((self._all_sum((values * mask).sum()) / tokens).item())
        metrics["ppo/explained_variance"].append(explained_variance(values, returns, mask, self._all_sum))
        if ref_logps is not None:
            kl = (self._all_sum(((old_logps - ref_logps) * mask).sum()) / completions).item()
            metrics["ppo/kl"].append(kl)
            metrics["ppo/kl_coef"].append(self._kl_controller.coefficient)
            metrics["ppo/non_score_reward"].append(-self._kl_controller.coefficient * kl)
            if completions > 0 and not self._warms_up:
                self._kl_controller.update(kl, int(completions))

    def samples(self, count: int) -> list[dict[str, Any]]:
        # The base's advantage is over a group; here each token has its own.
        return [{name: value for name, value in row.items() if name != "advantage"} for row in super().samples(count)]

    # The update: the base's surrogate and the value loss.

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._forward is None:
            ask = partial(super()._get_per_token_logps_and_entropies, model, input_ids, attention_mask, logits_to_keep)
            ask = partial(ask, *args, **kwargs)
            if not self._base_asks:
                return ask()
            self._base_asks = False
            found, self._values = self._with_values(ask, logits_to_keep)
            return found
        logps, entropies, aux_loss, self._values = self._pass(model, self._forward, logits_to_keep, **kwargs)
        assert entropies is not None
        self._scored = logps, entropies
        return logps, entropies, aux_loss

    @property
    def _warms_up(self) -> bool:
        """Whether this generation batch trains the critic alone."""
        every = int(self.args.steps_per_generation or 1) * self.num_iterations
        return self._step // every < self.args.critic_warmup_steps

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        warms_up = self._warms_up
        loss = super().training_step(*args, **kwargs)
        if warms_up:
            self._critic.drop_other_gradients()
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "returns" not in inputs:  # evaluation
            return super()._compute_loss(model, inputs)
        self._forward = self._forward_of(unpad(inputs))
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._forward = None
        args, logps, values = self.args, self._scored[0].detach(), self._values
        mask = loss_mask(inputs)
        per_token, clipped = value_loss(values, inputs["values"], inputs["returns"], args.cliprange_value)
        # Loss tokens of one optimizer step, averaged over the generation batch: the base's own denominator for `dapo`.
        share = self.current_gradient_accumulation_steps / int(args.steps_per_generation or 1)
        tokens = inputs["num_items_in_batch"].clamp(min=1) * share / self.accelerator.num_processes
        critic_loss = (per_token * mask).sum() / tokens
        with torch.no_grad():
            log_ratio = (logps - inputs["old_per_token_logps"]) * mask
            ratio, advantages = log_ratio.exp(), inputs["advantages"]
            outside = torch.where(advantages > 0, ratio > 1 + self.epsilon_high, ratio < 1 - self.epsilon_low)
            self._log_update(mask, per_token, clipped, outside, ratio, 0.5 * log_ratio.square())
        return loss + args.vf_coef * critic_loss

    def _log_update(self, mask: Tensor, *per_token: Tensor) -> None:
        """Add up `_UPDATE_METRICS` over the tokens of an optimizer step and log their means at its end."""
        self._window_sums += torch.stack([mask.sum(), *((values * mask).sum() for values in per_token)])
        if self.accelerator.sync_gradients:
            tokens, *sums = self._all_sum(self._window_sums).tolist()
            for name, value in zip(_UPDATE_METRICS, sums, strict=True):
                self._metrics["train"][f"ppo/{name}"].append(value / tokens if tokens else math.nan)
            self._window_sums = torch.zeros_like(self._window_sums)

    # Files: the model without the critic, the critic and the controller beside it.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """`state_dict`: what FSDP and DeepSpeed gathered, critic included; None where the weights are whole."""
        model, critic = (None, None) if state_dict is None else self._critic.split(state_dict)
        # The frozen copy is made anew from the adapter that a run starts from.
        with hidden_adapter(self.model, REFERENCE_ADAPTER), self._critic.detached():
            super()._save(output_dir, model)
        if self.args.should_save:
            self._critic.save(output_dir or str(self.args.output_dir), critic)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            (Path(output_dir) / _CONTROLLER_FILE).write_text(json.dumps({"kl_coef": self._kl_controller.coefficient}))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / _CONTROLLER_FILE).is_file():
            self._kl_controller.coefficient = json.loads(file.read_text())["kl_coef"]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # its own files hold the critic as a part of the model, like DeepSpeed's
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._critic.detached():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._critic.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        with self._critic.detached():
            super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._critic.load(self.state.best_model_checkpoint)
