"""ActingTrainer: RolloutTrainer whose rollouts may act in an environment, see images there and fold them away.

Without an environment it is the base. With one, TRL's loop over tools is left aside: it drops the images of a batch
when one of them is cut, counts their tokens as completion, cannot fold, and hangs where processes leave it at different
turns. Five of the base's methods are wrapped, none is copied:

    _generate_and_score_completions       keeps the rows for the environments, and the contexts with the batch
    _generate                             plays the rollouts, by TRL's own seam `rollout_func`
    _calculate_rewards                    logs what the environments measured, leaves rollouts for reading
    _get_per_token_logps_and_entropies    reads every context by itself, with its images
    _compute_loss                         says which contexts the batch at hand has
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hpt_trl.data.messages import IMAGES
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting, play
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.faults import columns, named
from hpt_trl.environments.features import join
from hpt_trl.environments.fillers import filled, fillers_of, image_context, text_context
from hpt_trl.environments.pieces import Context, Segment
from hpt_trl.environments.trajectories import leave_rollouts
from hpt_trl.errors import UserError
from hpt_trl.models.loading import positions_of
from hpt_trl.rollouts.contexts import Contexts
from hpt_trl.rollouts.rows import SEGMENTS
from hpt_trl.rollouts.trainer import RolloutTrainer


class ActingTrainer(RolloutTrainer):
    """`RolloutTrainer` with an `environment`; takes the other arguments of `trl.GRPOTrainer`.

    Args:
        environment: makes the environments of the rollouts; None for rollouts of one turn.

    Raises:
        ValueError: settings that cannot work together; the message gives the reason.
        UserError: a row that the environment cannot begin with.
    """

    _buffered_types = (*RolloutTrainer._buffered_types, Segment)

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        *args: Any,
        environment: TurnEnvironments | None = None,
        **kwargs: Any,
    ):
        self._acting: Acting | None = None
        self._segments: list[list[Segment]] | None = None
        self._rows: list[dict[str, Any]] = []
        self._bare: list[dict[str, Any]] = []
        self._episodes: list[Episode] = []
        if environment is not None:
            refuse_beside_environment(args[0] if args else kwargs.get("args"), kwargs)
        super().__init__(model, reward_funcs, *args, **kwargs)
        if environment is None:
            return
        encoder = Encoder(
            self.processing_class, self.chat_template_kwargs, reads_rows=False, end_ids=self.eos_token_ids
        )
        assert self.model is not None and self.max_completion_length is not None
        policy: Any = self.model
        positions = positions_of(policy.config)
        if self.use_vllm and self.args.vllm_max_model_length is not None:
            positions = min(self.args.vllm_max_model_length, positions or self.args.vllm_max_model_length)
        self._acting = Acting(environment, encoder, drawn=self.max_completion_length, positions=positions)
        self.rollout_func = self._rollouts
        self._fillers = fillers_of(self._acting)
        several = self.accelerator.num_processes > 1
        self._beside = (text_context(self._acting), image_context(self._acting) if several else None)

    # Rollouts.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._acting is None:
            return super()._generate_and_score_completions(inputs)
        # The images of a prompt are among those of its contexts; the base would make features of them once more.
        self._bare = [{name: value for name, value in row.items() if name not in IMAGES} for row in inputs]
        self._rows = inputs
        try:
            batch = super()._generate_and_score_completions(self._bare)
            batch[SEGMENTS] = self._segments
        finally:
            self._rows, self._bare, self._episodes, self._segments = [], [], [], None
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        if self._acting is None:
            return super()._generate(prompts)
        # With texts for prompts the base decodes what it gets and takes nothing apart.
        played = super()._generate([""] * len(prompts))
        prompt_ids, completion_ids, drawn, _, *others = played
        completions = [episode.completion() for episode in self._episodes]
        # Rewards and demonstrations are to find the images.
        for row, bare in zip(self._rows, self._bare, strict=True):
            bare.update(row)
        return prompt_ids, completion_ids, drawn, completions, *others

    def _rollouts(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Plays a rollout of each row; what the base calls a `rollout_func`."""
        assert self._acting is not None
        self._episodes = []
        for row in self._rows:
            try:
                self._episodes.append(self._acting.episode(row))
            except UserError as error:
                raise named(error, row) from error
        play(self._episodes, self._draw, self._any)
        flats = [episode.flat for episode in self._episodes]
        self._segments = [episode.segments for episode in self._episodes]
        return {
            "prompt_ids": [flat.prompt_ids for flat in flats],
            "completion_ids": [flat.completion_ids for flat in flats],
            "logprobs": [episode.logps for episode in self._episodes] if self.use_vllm else None,
            "env_mask": [flat.drawn for flat in flats],
            **columns([episode.facts() for episode in self._episodes], "facts"),
        }

    def _any(self, value: bool) -> bool:
        return bool(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).any())

    def _draw(self, episodes: list[Episode]) -> None:
        """Lets each of some pending rollouts draw its next turn."""
        assert self._acting is not None
        contexts = self._filled([episode.context() for episode in episodes])
        sequences = [context.features for context in contexts]
        fields: dict[str, Any] = dict(join(sequences))
        name = self._acting.encoder.type_name
        if name is not None and fields:
            fields[name] = [context.types or [0] * len(context.ids) for context in contexts]
        longest = max((episode.budget for episode in episodes), default=1)
        with self._limited(longest):
            # vLLM makes features of its own.
            shown = self.use_vllm and any(context.images for context in contexts)
            images = [list(context.pictures) or None for context in contexts] if shown else None
            drawn, logps = self._generate_single_turn([context.ids for context in contexts], images, fields, 1)
        self._acting.take(episodes, drawn, logps)

    def _filled(self, contexts: list[Context]) -> list[Context]:
        """The contexts with those that other processes need this one to generate in."""
        if self.use_vllm:
            # Of the answers to all processes each takes its own by the number of its questions.
            counts = self.accelerator.gather(torch.tensor([len(contexts)], device=self.accelerator.device))
            return contexts + [self._beside[0]] * (int(counts.max()) - len(contexts))
        return filled(contexts, *self._beside)

    @contextmanager
    def _limited(self, tokens: int) -> Iterator[None]:
        """While open, turns have at most so many tokens."""
        if self.use_vllm:
            # Processes that share an engine have to ask it for the same.
            limits = self.accelerator.gather(torch.tensor([tokens], device=self.accelerator.device))
            generation = self.vllm_generation
            before, generation.max_completion_length = generation.max_completion_length, int(limits.max())
            try:
                yield
            finally:
                generation.max_completion_length = before
            return
        config = self.generation_config
        before, config.max_new_tokens = config.max_new_tokens, tokens
        try:
            yield
        finally:
            config.max_new_tokens = before

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        if self._episodes:
            measured = columns([episode.measures() for episode in self._episodes], "measures")
            metrics = self._metrics["train" if cast(torch.nn.Module, self.model).training else "eval"]
            for name, values in measured.items():
                of_all = self.accelerator.gather(torch.tensor(values, device=self.accelerator.device).float())
                metrics[name].append(of_all.nanmean().item())
            endings = [episode.ended for episode in self._episodes]
            cut = torch.tensor([end in ("tokens", "context") for end in endings], device=self.accelerator.device)
            metrics["environment/cut"].append(self.accelerator.gather(cut.float()).mean().item())
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._episodes and self.log_completions and self.accelerator.is_main_process:
            names = self.reward_func_names
            told = [dict(zip(names, values, strict=True)) for values in rewards.tolist()]
            mode = "train" if cast(torch.nn.Module, self.model).training else "eval"
            folder, group = Path(cast(str, self.args.output_dir)), self._episodes[: self.num_generations]
            leave_rollouts(folder, group, told, mode=mode, step=self.state.global_step + 1)
        return rewards

    def _drawn_tokens(self, completion_ids: list[list[int]]) -> int:
        """Tokens of all completions that the model drew itself."""
        if self._acting is None:
            return sum(map(len, completion_ids))
        return sum(episode.drawn for episode in self._episodes)

    # Scoring and the step.

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        segments: Sequence[list[Segment]] | None = None,
        **features: Any,
    ) -> tuple[Any, Any, Any]:
        segments = self._segments if segments is None else segments
        if segments is None:
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **features,
            )
        size = batch_size or len(segments)
        parts = [
            self._of_contexts(
                model,
                segments[start : start + size],
                attention_mask[start : start + size],
                logits_to_keep,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
            )
            for start in range(0, len(segments), size)
        ]
        every_logps, every_entropies, aux = zip(*parts, strict=True)
        logps = torch.cat(every_logps)
        entropies = torch.cat(every_entropies) if compute_entropy else None
        self._scored = logps, entropies
        return logps, entropies, torch.stack(aux).mean() if compute_aux_loss else None

    def _of_contexts(
        self, model: Any, rows: Sequence[list[Segment]], mask: Tensor, keep: int, **wanted: Any
    ) -> tuple[Any, Any, Any]:
        assert self._acting is not None
        shows = any(segment.images for row in rows for segment in row)
        contexts = Contexts.of(
            rows,
            self._tokenizer.pad_token_id,
            mask.device,
            multiple=self.pad_to_multiple_of,
            type_name=self._acting.encoder.type_name,
            fillers=() if shows else self._fillers,
        )
        logps, entropies, aux = super()._get_per_token_logps_and_entropies(model, **contexts.arguments, **wanted)
        scattered = [
            None if values is None else contexts.scattered(values, mask, keep) for values in (logps, entropies)
        ]
        return scattered[0], scattered[1], aux

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._segments = inputs.get(SEGMENTS)
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._segments = None


def refuse_beside_environment(config: Any, arguments: dict[str, Any]) -> None:
    """Settings that an environment cannot be combined with.

    Raises:
        ValueError: with the reason and what to set instead.
    """
    for name in ("tools", "rollout_func", "environment_factory"):
        if arguments.get(name) is not None:
            raise ValueError(f"`{name}` beside `environment`: both say what follows a turn. Keep one of the two.")
    if config is not None and config.use_transformers_continuous_batching:
        raise ValueError(
            "`use_transformers_continuous_batching` generates from texts alone, and not in an `environment`. Drop it."
        )
