"""Rollouts that a tiny model draws itself in an environment: what it gets, and where it must stop."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from hpt_trl import HybridPostTrainer
from hpt_trl.rollouts.acting import ActingTrainer
from tests.helpers.acted import EndsAnywhere, train
from tests.helpers.gradients import Watched
from tests.helpers.tiny import build_tokenizer


@pytest.fixture(scope="module")
def paths(vlm_path, qwen_path, tiny_model_path):
    return {"idefics": vlm_path, "qwen": qwen_path, "text": tiny_model_path}


@pytest.fixture
def run(paths, tmp_path):
    return lambda trainer, model="idefics", **settings: train(trainer, paths[model], tmp_path, **settings)


class Measured:
    """Mixin: notes what the model gets."""

    def _generate_single_turn(self, prompt_ids, images, fields, *args):
        assert images is None
        longest = self.generation_config.max_new_tokens
        drawn, logps = super()._generate_single_turn(prompt_ids, images, fields, *args)
        self.turns = [*getattr(self, "turns", []), (max(map(len, prompt_ids)), longest, max(map(len, drawn)))]
        return drawn, logps

    def _rollouts(self, *args):
        fields = super()._rollouts(*args)
        self.kept = [*getattr(self, "kept", []), *self._episodes]
        return fields


class MeasuredActing(Measured, ActingTrainer):
    pass


class MeasuredHPT(Measured, HybridPostTrainer):
    pass


@pytest.mark.parametrize(
    "trainer,model,limits",
    [
        (MeasuredActing, "idefics", {"max_images": 1, "max_context_length": 96, "max_turn_length": 12}),
        (MeasuredHPT, "qwen", {"max_images": 1, "max_context_length": 100, "max_turn_length": 16}),
        (MeasuredHPT, "idefics", {"max_turn_length": 8, "max_turns": 4}),
        (MeasuredHPT, "text", {"max_context_length": 80}),
    ],
)
def test_the_model_draws_its_own_turns(run, paths, monkeypatch, trainer, model, limits):
    watched = Watched(monkeypatch)
    settings = {"max_steps": 2, "max_completion_length": 40, "learning_rate": 1e-2, "optim": "adamw_torch"}
    ours = run(trainer, model=model, limits=limits, **settings)
    # A tiny model hardly ever ends a turn.
    limit, turn = limits.get("max_context_length"), limits.get("max_turn_length", 40)
    for width, longest, drawn in ours.turns:
        assert drawn <= longest <= turn
        assert limit is None or width < limit
    for episode in ours.kept:
        assert episode.drawn <= 40
        assert limit is None or all(len(segment) <= limit for segment in episode.segments)
    assert limit is None or all(ids.size(1) <= limit for ids, _ in watched.passes)
    assert all(torch.isfinite(p).all() for p in ours.model.parameters())


class Scored(EndsAnywhere, MeasuredActing):
    """Keeps the logits that turns were drawn from."""

    def _draw(self, episodes):
        seen = []
        hook = self.model.register_forward_hook(lambda model, arguments, output: seen.append(output.logits[:, -1]))
        try:
            super()._draw(episodes)
        finally:
            hook.remove()
        self.scores = getattr(self, "scores", {})
        assert len(seen) == 1
        for episode, logits in zip(episodes, seen[0], strict=True):
            self.scores.setdefault(id(episode), []).append(logits)


@pytest.mark.parametrize("model", ["idefics", "qwen"])
def test_a_turn_is_drawn_on_what_it_is_trained_on(run, model):
    """The logits of each turn's token: in generation, among others, and in a plain pass over its context."""
    ours = run(Scored, model=model, limits={"max_images": 2, "max_turns": 4}, learning_rate=0.0)
    model, checked = ours.model.eval(), 0
    for episode in ours.kept:
        expected = []
        for segment in episode.segments:
            inputs = {"input_ids": segment.ids[None], "attention_mask": torch.ones_like(segment.ids)[None]}
            for features in segment.features:
                for name, value in features.items():
                    joined = 0 if "image_grid_thw" in features else 1
                    inputs[name] = torch.cat([inputs[name], value], joined) if name in inputs else value
            if segment.types is not None:
                inputs["mm_token_type_ids"] = segment.types[None]
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            expected += [logits[place - 1] for place in segment.drawn.nonzero().flatten().tolist()]
        drawn = ours.scores[id(episode)][: len(expected)]
        torch.testing.assert_close(torch.stack(drawn), torch.stack(expected), atol=1e-5, rtol=1e-4)
        checked += len(expected) == 4
    assert checked >= 8


def test_a_model_is_not_led_beyond_its_positions(tmp_path):
    """OPT has a table of positions: a batch in which one rollout is near its end and another is not."""
    tokenizer = build_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(vocab_size=len(tokenizer), num_attention_heads=4, max_position_embeddings=160, **sizes, **ids)
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    trainer = train(MeasuredActing, str(tmp_path / "opt"), tmp_path, max_completion_length=150, max_steps=2)
    assert any(episode.turns > 1 for episode in trainer.kept)
