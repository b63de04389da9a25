"""PPOTrainer: GRPOTrainer with a learned critic.

What is wrapped of the base, and why:

    _generate_and_score_completions       adds old log-probabilities, values, returns and GAE advantages to the rollouts
    _prepare_inputs                       deals rollouts of like length to a micro-batch and trims the padding
    _get_per_token_logps_and_entropies    asks the critic in the same forward pass
    _compute_loss                         adds the value loss to the base's clipped surrogate
    _generate_single_turn, _save, ...     keep the critic out of vLLM and out of the model's files, and save it beside

The base generates, scores, masks tool outputs, corrects for vLLM, clips and accumulates; nothing of it is copied.
"""

import copy
import json
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.models.utils import disable_gradient_checkpointing, prepare_fsdp
from trl.trainer.utils import use_adapter

from hpt_trl.ppo.config import PPOConfig
from hpt_trl.ppo.critic import Critic
from hpt_trl.ppo.estimator import (
    KLController,
    explained_variance,
    generalized_advantages,
    normalized_scores,
    token_rewards,
    value_loss,
    whiten,
)
from hpt_trl.rollouts.rows import Forward, collate, deal, unpad
from hpt_trl.rollouts.trainer import RolloutTrainer

_CONTROLLER_FILE = "kl_controller.json"


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

    def __init__(
        self, model: "str | PreTrainedModel", reward_funcs: Any = None, args: PPOConfig | None = None, **kwargs: Any
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = PPOConfig(f"{name.split('/')[-1]}-PPO")
        initial_adapter = not isinstance(model, str) and hasattr(model, "peft_config")
        if args.ddp_find_unused_parameters is None:
            # DDP would look for the critic in the model's output, which has only the policy's part.
            args.ddp_find_unused_parameters = False
        super().__init__(model, reward_funcs, args, **kwargs)
        self._adapter_reference: str | None = None
        if args.kl_coef != 0.0:
            self._make_reference(initial_adapter)
        self._critic = Critic(self.model, args.value_model_name_or_path, trust_remote_code=args.trust_remote_code)
        self._kl_controller = KLController(
            args.kl_coef,
            adaptive=args.kl_controller == "adaptive",
            target=args.kl_target,
            horizon=args.kl_horizon,
        )
        self._values: Tensor | None = None
        self._logps: Tensor

    def _make_reference(self, initial_adapter: bool) -> None:
        """The base rebuilds its reference from the config's name; ours are the weights that were passed."""
        if hasattr(self.model, "peft_config"):
            if initial_adapter:
                # What was passed is base model and adapter; disabling the adapter would take a part of it away.
                policy: Any = self.model
                policy.add_adapter("reference", policy.peft_config["default"])
                for name, value in policy.named_parameters():
                    if ".default." in name:
                        copied = policy.get_parameter(name.replace(".default.", ".reference."))
                        copied.requires_grad_(False).copy_(value.detach())
                self._adapter_reference = "reference"
            return
        if self.is_deepspeed_enabled:
            raise ValueError(
                "`kl_coef`: the frozen copy of the policy is not sharded by DeepSpeed. Train with LoRA "
                "(`use_peft: true`), whose base model is the reference, or set `kl_coef: 0`."
            )
        reference: Any = copy.deepcopy(self.model).eval().requires_grad_(False)
        if self.is_fsdp_enabled:
            reference = prepare_fsdp(reference, self.accelerator)
        else:
            reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.ref_model = reference

    def _all_sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum")

    # Rollouts: scores, values, advantages.

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._critic.detached():
            return super()._generate_single_turn(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        mask = batch["completion_mask"]
        mask = (mask * batch["tool_mask"] if "tool_mask" in batch else mask).float()
        scores = self._scores(batch["completion_ids"], batch["completion_mask"])
        # A rollout without a score teaches nothing; the others are whitened without it.
        scored = ~scores.isnan()
        mask, scores = mask * scored.unsqueeze(1), scores.nan_to_num(0.0)

        old_logps, values, ref_logps = self._score_rollouts(batch)
        rewards = token_rewards(old_logps, ref_logps, mask, scores, self._kl_controller.coefficient)
        advantages, returns = generalized_advantages(rewards, values, mask, self.args.gamma, self.args.lam)
        self._log_rollouts(mask, scores, old_logps, ref_logps, values, returns)
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, self._all_sum)
        batch |= {
            "old_per_token_logps": old_logps,
            "advantages": advantages,
            "values": values,
            "returns": torch.where(mask > 0, returns, values),
        }
        return batch

    def _scores(self, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """Score of each local completion: the weighted reward, normalized as the settings say; NaN without one."""
        args = self.args
        rewards = self._weighted_rewards(self._rewards).float()
        if args.missing_eos_penalty is not None:
            ends = torch.tensor(self.eos_token_ids, device=completion_ids.device)
            finished = (torch.isin(completion_ids, ends) & (completion_mask > 0)).any(dim=1)
            rewards = rewards - args.missing_eos_penalty * (~self.accelerator.gather(finished)).float()
        scores = normalized_scores(
            rewards, self.num_generations, args.score_centering, args.score_scaling, args.score_clip
        )
        first = self.accelerator.process_index * len(completion_ids)
        return scores[first : first + len(completion_ids)]

    @torch.no_grad()
    def _score_rollouts(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Old log-probabilities, values and the reference's log-probabilities, each (rollouts, completion tokens)."""
        policy: Any = self.accelerator.unwrap_model(self.model)
        if self.args.kl_coef == 0.0:
            reference: Any = None
        elif self.ref_model is None:
            reference = (self.model, lambda: use_adapter(policy, adapter_name=self._adapter_reference))
        else:
            reference = (self.ref_model, nullcontext)
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self.model, checkpointing):
            old_logps, values = self._forward_rollouts(batch, self.model, nullcontext)
            ref_logps = None if reference is None else self._forward_rollouts(batch, *reference)[0]
        return old_logps, values, ref_logps

    def _forward_rollouts(self, batch: dict[str, Any], model: Any, adapter: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values of a generation batch; rows of like length go together, without a gap."""
        rows, width = unpad(batch), batch["completion_ids"].size(1)
        slots = max(1, len(rows) // self.args.per_device_train_batch_size)
        logps = torch.zeros(batch["completion_ids"].shape, device=batch["completion_ids"].device)
        values = torch.zeros_like(logps)
        for chosen in deal([len(row) for row in rows], slots):
            forward = Forward.of([rows[i] for i in chosen], self._tokenizer.pad_token_id, self.pad_to_multiple_of)
            with adapter():
                scored = self._get_per_token_logps_and_entropies(model, **forward.arguments)[0]
            every = slice(None)
            logps[chosen] = forward.completions(scored, every, width)
            if self._values is not None:
                values[chosen] = forward.completions(self._values, every, width)
        return logps, values

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
        completions = self._all_sum((mask.sum(1) > 0).float().sum()).clamp(min=1)
        tokens = self._all_sum(mask.sum()).clamp(min=1)
        metrics = self._metrics["train"]
        metrics["ppo/score"].append((self._all_sum(scores.sum()) / completions).item())
        metrics["ppo/returns_mean"].append((self._all_sum((returns * mask).sum()) / tokens).item())
        metrics["ppo/values_mean"].append((self._all_sum((values * mask).sum()) / tokens).item())
        metrics["ppo/explained_variance"].append(explained_variance(values, returns, mask, self._all_sum))
        if ref_logps is not None:
            kl = (self._all_sum(((old_logps - ref_logps) * mask).sum()) / completions).item()
            metrics["ppo/kl"].append(kl)
            metrics["ppo/kl_coef"].append(self._kl_controller.coefficient)
            metrics["ppo/non_score_reward"].append(-self._kl_controller.coefficient * kl)
            self._kl_controller.update(kl, int(completions))

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:
            self._buffered_inputs = self._trimmed(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % len(self._buffered_inputs)]
        return inputs

    def _trimmed(self, buffers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches with rows of like length together and no wider than needed.

        Rows stay in their optimizer step, whose loss is a sum over its micro-batches: the dealing changes nothing else.
        """
        per_step = self.args.gradient_accumulation_steps
        if len(buffers) % per_step:
            per_step = 1
        trimmed = []
        for first in range(0, len(buffers), per_step):
            window = buffers[first : first + per_step]
            rows = [row for buffer in window for row in unpad(buffer)]
            for slot, buffer in zip(deal([len(row) for row in rows], per_step), window, strict=True):
                batch = collate([rows[i] for i in slot], self._tokenizer.pad_token_id, self.pad_to_multiple_of)
                trimmed.append(batch | {"num_items_in_batch": buffer["num_items_in_batch"]})
        return trimmed

    # The update: the base's surrogate and the value loss.

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with self._critic.asked() as values:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        # None of the reference. The last position predicts a token that is not there.
        self._values = torch.cat([chunk[:, :-1][:, -logits_to_keep:] for chunk in values]) if values else None
        self._logps = result[0]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if "returns" not in inputs:  # evaluation
            return loss
        args, values = self.args, self._values
        assert values is not None
        mask = inputs["completion_mask"]
        mask = (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).float()
        per_token, clipped = value_loss(values, inputs["values"], inputs["returns"], args.cliprange_value)
        # The base's token-mean denominator: loss tokens of one optimizer step, averaged over the generation batch.
        share = self.current_gradient_accumulation_steps / args.steps_per_generation
        tokens = inputs["num_items_in_batch"].clamp(min=1) * share / self.accelerator.num_processes
        critic_loss = (per_token * mask).sum() / tokens

        with torch.no_grad():
            log_ratio = (self._logps - inputs["old_per_token_logps"]) * mask
            ratio = log_ratio.exp()
            advantages = inputs["advantages"]
            outside = torch.where(advantages > 0, ratio > 1 + self.epsilon_high, ratio < 1 - self.epsilon_low)
            per_metric = (
                mask,
                per_token * mask,
                clipped * mask,
                outside * mask,
                ratio * mask,
                0.5 * log_ratio.square(),
            )
            sums = self._all_sum(torch.stack([x.sum() for x in per_metric]))
            means = (sums[1:] / sums[0].clamp(min=1)).tolist()
        names = ("value_loss", "value_clipfrac", "clipfrac", "ratio", "approx_kl")
        for name, mean in zip(names, means, strict=True):
            self._metrics["train"][f"ppo/{name}"].append(mean)
        return loss + args.vf_coef * critic_loss

    # Files: the model without the critic, the critic and the controller beside it.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None:
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith("value_head.")}
        with self._critic.detached():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._critic.save(output_dir or str(self.args.output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            (Path(output_dir) / _CONTROLLER_FILE).write_text(json.dumps({"kl_coef": self._kl_controller.coefficient}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._critic.detached():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._critic.load(resume_from_checkpoint)
        file = Path(resume_from_checkpoint) / _CONTROLLER_FILE
        if file.is_file():
            self._kl_controller.coefficient = json.loads(file.read_text())["kl_coef"]
