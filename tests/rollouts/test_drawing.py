"""How rollouts are generated: stock's completions in fewer positions, and completions of some prompts on request."""

from types import SimpleNamespace

import pytest
import torch
from transformers import StoppingCriteria
from trl import GRPOTrainer

from hpt_trl.rollouts.drawing import draw
from hpt_trl.rollouts.trainer import RolloutTrainer
from tests.helpers.rollouts import GROUP, MIXED, build

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5], [100] * 4]


class Ending:
    """Mixin for a GRPOTrainer: many tokens end a completion, and the shapes of the passes that generate are kept."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.eos_token_ids = [self._tokenizer.eos_token_id, *range(20, 400, 19)]
        self.generation_config.eos_token_id = self.eos_token_ids
        self.drawn, self.shapes, self.generating = [], [], False
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        inner.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        if self.generating:
            self.shapes.append(tuple(kwargs["input_ids"].shape))

    def _generate_single_turn(self, *args, **kwargs):
        self.generating = True
        completions, logps = super()._generate_single_turn(*args, **kwargs)
        self.generating = False
        self.drawn.append(completions)
        return completions, logps


class EndingGRPO(Ending, GRPOTrainer):
    pass


class EndingRollouts(Ending, RolloutTrainer):
    pass


def positions(shapes):
    return sum(rows * width for rows, width in shapes)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_p": 0.9}, {"lora": True, "gradient_checkpointing": True}], ids=str
)
def test_training_draws_the_completions_of_stock_in_fewer_positions(tiny_model_path, tmp_path, settings):
    sides = []
    for trainer_class in (EndingGRPO, EndingRollouts):
        trainer = build(trainer_class, tiny_model_path, tmp_path, max_steps=3, learning_rate=1e-2, **settings)
        trainer.train()
        sides.append(trainer)
    stock, ours = sides
    assert ours.drawn == stock.drawn
    assert len(ours.drawn) == 3
    for name, weight in ours.model.state_dict().items():
        torch.testing.assert_close(weight, stock.model.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert {rows for rows, width in ours.shapes if width > 1} == {len(MIXED)}
    later = sum(rows for rows, width in ours.shapes if width == 1)
    assert later == sum(len(ids) - 1 for batch in ours.drawn for ids in batch)
    assert positions(ours.shapes) < 0.5 * positions(stock.shapes)
    assert {rows for rows, width in stock.shapes} == {len(MIXED) * GROUP}


def test_some_prompts_are_answered_as_beside_all_others(tiny_model_path, tmp_path):
    trainer = build(EndingRollouts, tiny_model_path, tmp_path)
    trainer.generation_config.do_sample = False
    every, _ = draw(trainer, PROMPTS, [1, 1, 1])
    first, _ = draw(trainer, PROMPTS[:1], [2])
    more, logps = draw(trainer, [PROMPTS[2], PROMPTS[0]], [3, 1])
    assert first == [[every[0][0]] * 2]
    assert more == [[every[2][0]] * 3, [every[0][0]]]
    assert logps is None


def test_rows_that_are_settled_end(tiny_model_path, tmp_path):
    class Settled(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            after = input_ids.shape[1] >= max(map(len, PROMPTS)) + 2
            return torch.tensor([True, True, False, False, True]) & after

    trainer = build(EndingRollouts, tiny_model_path, tmp_path)
    trainer.eos_token_ids = trainer.generation_config.eos_token_id = [0]
    draw(trainer, PROMPTS, [2, 2, 1], Settled())
    assert [rows for rows, width in trainer.shapes] == [3, 5, *[2] * (trainer.max_completion_length - 2)]
    assert trainer.stopping is None


def test_vllm_gets_the_weights_once_for_several_calls(tiny_model_path, tmp_path):
    asked, synced = [], []

    def answer(prompts, images, num_generations, profiler):
        asked.append((prompts, num_generations))
        return None, [[7, len(prompt)] for prompt in prompts], [[[-0.5], [-0.25]] for _ in prompts], None

    trainer = build(RolloutTrainer, tiny_model_path, tmp_path)
    trainer.use_vllm = True  # the engine itself: tests_vllm/
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: synced.append(1), generate=answer)
    trainer._last_loaded_step = -1
    completions, logps = draw(trainer, PROMPTS, [2, 2, 2])
    assert completions == [[[7, len(prompt)]] * 2 for prompt in PROMPTS]
    assert logps == [[[-0.5, -0.25]] * 2] * 3
    draw(trainer, PROMPTS[:2], [1, 3])
    assert synced == [1]
    assert asked == [([p for p in PROMPTS for _ in range(2)], 2), ([PROMPTS[0], *[PROMPTS[1]] * 3], 1)]
    with pytest.raises(ValueError, match="vLLM answers a call as a whole"):
        draw(trainer, PROMPTS, [1, 1, 1], StoppingCriteria())
