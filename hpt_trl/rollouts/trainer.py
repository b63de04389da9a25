"""RolloutTrainer: GRPOTrainer with the faults of TRL 1.16 that bite on rollouts mended in one place.

Each mend wraps one method of the base and can be dropped when upstream is fixed:

    _get_train_sampler             a resumed run draws the permutation of its own epoch, not the first one's
    _save_rng_state                a checkpoint between two generations keeps the rollouts that are still to be trained
    _load_rng_state                ... and a resumed run goes on with them
    __init__                       a reward model given by name is asked about texts as it was trained on, and no two
                                   rewards share a name; the reference is the model that was passed, and not one read
                                   from its folder; a model without a weight to train and a biased correction for vLLM
                                   are refused
    _tokenize_prompts              a tokenizer that ends every text does not end the prompts, which are to be answered
    _calculate_rewards             a reward of NaN or infinity leaves its row out instead of spoiling the batch
    _generate_single_turn          weights are cast once per generation, not once per token; a prompt is computed once
                                   for its group, and rows that have ended leave the batch; the model's own generation
                                   config does not shape the rollouts

and vLLM's engine and client by `hpt_trl.rollouts.vllm.mended`. `hpt_trl.rollouts.computing` is about speed.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, ProcessorMixin, StoppingCriteria
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from hpt_trl.data.rendering import Encoder
from hpt_trl.models.decoding import neutral_decoding
from hpt_trl.models.fsdp2 import mend_fsdp2
from hpt_trl.models.generating.leaving import finished_rows_leave
from hpt_trl.models.moving_reference import KeepsReference
from hpt_trl.models.trainable import refuse_untrainable
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.names import distinct_names, numbered
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.rollouts.computing import ComputesOnce
from hpt_trl.rollouts.reference import passed_as_reference
from hpt_trl.rollouts.sampling import check_sampling
from hpt_trl.rollouts.step_metrics import Places, Totals
from hpt_trl.rollouts.vllm import mended

logger = logging.getLogger(__name__)


class EpochSampler(RepeatSampler):
    """TRL's RepeatSampler, whose permutation depends on the epoch alone.

    The base draws one permutation after the other from one generator, so a resumed run sees the first again. Here an
    epoch's permutation is the one that an uninterrupted run of the base would have drawn.
    """

    seed: int

    def __init__(self, *args: Any, epoch: Callable[[], int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


def _loaded(reward_funcs: list[Any], config: GRPOConfig | None, tokenizers: Any) -> list[Any]:
    """The rewards, those given by name as reward models with the settings that the base gives to them.

    The base ends no text when it asks a reward model, and so asks about texts that the model never saw.
    """
    each = tokenizers if isinstance(tokenizers, list) else [tokenizers] * len(reward_funcs)
    if len(each) != len(reward_funcs):
        raise ValueError(
            f"`reward_processing_classes` has {len(each)} entries for {len(reward_funcs)} rewards; give one for each "
            "(None for a function), in the order of `reward_funcs`."
        )
    settings: dict[str, Any] = {}
    if config is not None:
        settings = {"trust_remote_code": config.trust_remote_code, "model_init_kwargs": config.model_init_kwargs}
    if any(isinstance(reward, torch.nn.Module) for reward in reward_funcs):
        logger.warning(
            "A reward model that is passed as an object is asked about texts without an end-of-sequence token, unlike "
            "in its training by RewardTrainer; pass its folder or Hub id to have them ended."
        )
    return [
        RewardModel(reward, tokenizer=tokenizer, **settings) if isinstance(reward, str) else reward
        for reward, tokenizer in zip(reward_funcs, each, strict=True)
    ]


class RolloutTrainer(ComputesOnce, KeepsReference, GRPOTrainer):
    """`trl.GRPOTrainer` with the mends of this module; takes the same arguments.

    Raises:
        UserError: a reward model that cannot be used, a model without a weight to train, or a reward function that
            fails or returns something else than a number for each completion.
        ValueError: settings that cannot work together; the message gives the reason.
    """

    args: GRPOConfig
    num_generations: int
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    chat_template_kwargs: dict[str, Any]
    # Classes that the micro-batches may hold beside tensors, lists and numbers.
    _buffered_types: tuple[type, ...] = (Places, Totals)
    stopping: StoppingCriteria | None = None  # says of a generation at hand which rows go on for nothing

    def __init__(self, model: Any, reward_funcs: Any = None, *args: Any, **kwargs: Any):
        several = isinstance(reward_funcs, list | tuple)
        reward_funcs = list(reward_funcs) if several else [reward_funcs] if reward_funcs else []
        given = inspect.signature(GRPOTrainer).bind_partial(model, reward_funcs, *args, **kwargs).arguments
        config = given.get("args")
        named = _loaded(reward_funcs, config, given.get("reward_processing_classes"))
        # Models are the base's business; only functions can raise on a row.
        names = distinct_names(named)
        guarded: list[Any] = [
            f if isinstance(f, torch.nn.Module) else guard(f, name) for f, name in zip(named, names, strict=True)
        ]
        if config is not None:
            check_sampling(config)
        if given.get("peft_config") is None:
            refuse_untrainable(model)
        mend_fsdp2()
        with mended(config, model), passed_as_reference(model, config):
            super().__init__(model, guarded, *args, **kwargs)
        refuse_untrainable(self.model)
        self._compute_once()
        # Environments may have added rewards of their own.
        self.reward_func_names = numbered([*names, *self.reward_func_names[len(names) :]])

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        stock = super()._get_train_sampler(dataset)
        assert isinstance(stock, RepeatSampler)
        return EpochSampler(
            stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
            # Whole when an epoch begins; a run that resumes inside of one starts from a fraction.
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _rollouts_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"rollouts_{self.accelerator.process_index}.pt"

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        every = int(self.args.steps_per_generation or 1) * self.num_iterations
        buffered = self._buffered_inputs if self._step % every else None
        torch.save({"step": self._step, "buffered": buffered}, self._rollouts_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        # A checkpoint of the stock trainer has no such file: it is resumed as the stock trainer does.
        if checkpoint is not None and (file := self._rollouts_file(checkpoint)).is_file():
            with torch.serialization.safe_globals(list(self._buffered_types)):
                state = torch.load(file, map_location=self.accelerator.device, weights_only=True)
            self._step, self._buffered_inputs = state["step"], state["buffered"]

    def _tokenize_prompts(self, prompts: list) -> Any:
        ids, *others = super()._tokenize_prompts(prompts)
        if isinstance(prompts[0], str) and self._ends_texts:
            ids = [row[:-1] for row in ids]
        return ids, *others

    @cached_property
    def _ends_texts(self) -> bool:
        return Encoder(self.processing_class).ends_texts

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        # `guard` reports NaN and inf with their row and hands both on as inf; a model's NaN is meant likewise.
        of_models = torch.tensor([isinstance(f, torch.nn.Module) for f in self.reward_funcs], device=rewards.device)
        broken = rewards.isinf() | (rewards.isnan() & of_models)
        rewards[broken] = torch.nan
        # What single rewards say of a rollout, whose sum may be unknown.
        self._each_reward = rewards.clone()
        # NaN in every column is the base's sign for a row without a reward: it leaves the baseline alone and gets no
        # advantage. A reward that is only measured takes no row away.
        rewards[(broken & (self.reward_weights.to(rewards.device) != 0)).any(dim=1)] = torch.nan
        self._rewards = rewards
        return rewards

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # The base generates with float32 weights that every forward pass casts anew under mixed precision. One
        # autocast around all of them keeps the casts: the same arithmetic, several times as fast on a CPU. The weights
        # of a sharded model come and go, their casts must not be kept.
        assert self.model is not None
        foreign = self.use_vllm or self.is_fsdp_enabled or self.is_deepspeed_enabled
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        with (
            nullcontext() if foreign else self.accelerator.autocast(),
            neutral_decoding(self.model),
            finished_rows_leave(self.model, sharded=sharded, stopping=self.stopping),
        ):
            return super()._generate_single_turn(*args, **kwargs)

    def _weighted_rewards(self, rewards_per_func: Tensor) -> Tensor:
        """Weighted reward of each rollout over all processes; NaN where no reward applies. Shape: (rollouts,)."""
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        rewards[rewards_per_func.isnan().all(dim=1)] = torch.nan
        return rewards

    def samples(self, count: int) -> list[dict[str, Any]]:
        """The first rollouts of the last generation batch over all processes, for reading.

        Args:
            count: How many at most.

        Returns:
            `mode` (what it is used as: `RL`, or what a trainer says of its own), `prompt`, `completion`, the value of
            each reward, what rewards log beside it, and `advantage`, of each.
        """
        logged: dict[str, Any] = self._logs
        columns = {**logged["rewards"], **logged["extra"], "advantage": logged["advantages"]}
        return [
            {"mode": "RL", "prompt": prompt, "completion": completion}
            | {name: values[row] for name, values in columns.items() if row < len(values)}
            for row, (prompt, completion) in enumerate(zip(logged["prompt"], logged["completion"], strict=True))
            if row < count
        ]
