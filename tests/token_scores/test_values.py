"""Values of a frozen value model: that they are its own, and which value models will not do."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from trl import SFTTrainer

from hpt_trl import UserError
from hpt_trl.models.folders import VALUE_CONFIG_FILE
from hpt_trl.models.value_model import load_value_model
from hpt_trl.token_scores.cache import WithScores, example_key, scores_of
from hpt_trl.token_scores.config import ValueScoresConfig
from hpt_trl.token_scores.kinds import VALUES, scored_positions
from hpt_trl.token_scores.values import check_value_model, fingerprint, load_frozen, token_values, value_cache
from tests.helpers.rho1 import demonstrations, documents
from tests.helpers.tiny import build_tokenizer, save_tiny_model
from tests.helpers.value_models import plain_values, save_value_model

CPU = torch.device("cpu")


@pytest.fixture
def critic(tiny_model_path, tmp_path) -> str:
    return save_value_model(tiny_model_path, tmp_path / "critic")


@pytest.fixture
def configured(tmp_path, critic):
    def make(name: str = critic, **settings) -> ValueScoresConfig:
        settings = {"max_length": 64, "per_device_train_batch_size": 3, "bf16": False} | settings
        return ValueScoresConfig(
            output_dir=str(tmp_path / "out"),
            value_model_name_or_path=name,
            value_cache_dir=str(tmp_path / "values"),
            use_cpu=True,
            report_to="none",
            **settings,
        )

    return make


def prepared(config: ValueScoresConfig, model_path: str, rows: Dataset) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    return SFTTrainer(model_path, config, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (demonstrations(), {}),
        (demonstrations(), {"padding_free": True, "max_length": None}),
        (documents(), {"packing": True, "packing_strategy": "bfd"}),
        (documents(), {"packing": True, "packing_strategy": "wrapped"}),
    ],
    ids=["padded", "padding-free", "bfd", "wrapped"],
)
def test_cached_values_are_the_value_models(configured, critic, tiny_model_path, rows, settings):
    config = configured(**settings)
    trainer = prepared(config, tiny_model_path, rows)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    cache = value_cache(config, tokenizer, trainer.train_dataset, trainer.data_collator, device=CPU)
    oracle, online = load_value_model(critic, trainable=False), load_frozen(config, CPU)
    collator = pickle.loads(pickle.dumps(WithScores(trainer.data_collator, cache)))
    spread = 0.0
    for example in trainer.train_dataset:
        expected = plain_values(oracle, example)
        found = cache.scores(example_key(example))
        batch = collator([example])
        labels, values = batch["labels"][0], scores_of(batch, VALUES)[0]
        for place in scored_positions(batch["labels"])[0].nonzero().flatten().tolist():
            # The token's own value, and the one that it started from: of the prompt, where it is the first.
            for at in (place, place - 1):
                assert values[at].item() == pytest.approx(expected[at].item(), rel=1e-3, abs=1e-5)
        spread = max(spread, float(np.ptp(found)))
        torch.testing.assert_close(
            scores_of({"values": token_values(online, batch).view(batch["values"].dtype)}, VALUES)[0], values
        )
        assert (values[(labels == -100) & (values != 0)] != 0).sum() <= max(1, len(example.get("seq_lengths") or []))
    assert spread > 0.1
    again = value_cache(config, tokenizer, trainer.train_dataset, trainer.data_collator, device=CPU)
    assert len(again) == len(cache) and again.folder == cache.folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_of_another_critic_are_told_from_rounding(configured, tiny_model_path, tmp_path, dtype):
    tokenizer, found = AutoTokenizer.from_pretrained(tiny_model_path), {}
    for seed in (0, 1):
        # Of a small spread, as a critic's are.
        name = save_value_model(tiny_model_path, tmp_path / f"critic-{seed}", seed=seed, scale=0.12)
        config = configured(name, value_dtype=dtype)
        trainer = prepared(config, tiny_model_path, demonstrations())
        asked = (config, tokenizer, trainer.train_dataset, trainer.data_collator)
        found[seed] = value_cache(*asked, device=CPU)
    keys = [example_key(row) for row in trainer.train_dataset]
    mine, others = ([found[seed].scores(key) for key in keys] for seed in (1, 0))
    assert max(np.ptp(row) for row in mine) < 0.06
    # About the same number everywhere, as of two critics that were trained alike.
    shift = np.concatenate(others).mean() - np.concatenate(mine).mean()
    others = [row - shift for row in others]
    # Rows that were scored one by one are the same values.
    config.per_device_train_batch_size = 1
    for path in found[1].folder.glob("*.values"):
        path.unlink()
    value_cache(*asked, device=CPU)
    config.per_device_train_batch_size = 5
    value_cache(*asked, device=CPU)
    for path in found[1].folder.glob("*.values"):
        path.unlink()
    found[1].write(keys, others)
    with pytest.raises(UserError, match="does not hold this value model's values: those of row 0"):
        value_cache(*asked, device=CPU)


def test_values_and_losses_lie_apart_and_travel_together(configured, critic, tiny_model_path, tmp_path):
    config = configured()
    trainer = prepared(config, tiny_model_path, demonstrations())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    cache = value_cache(config, tokenizer, trainer.train_dataset, trainer.data_collator, device=CPU)
    assert [path.suffix for path in cache.folder.iterdir() if path.name != "manifest.json"] == [".values"]
    two = WithScores(WithScores(trainer.data_collator, cache), cache)
    assert two([trainer.train_dataset[0]])["values"].shape == (1, len(trainer.train_dataset[0]["input_ids"]))


def test_what_the_values_depend_on(configured, critic, tiny_model_path, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    mine = fingerprint(configured(), tokenizer, autocast=None)
    other = save_value_model(tiny_model_path, tmp_path / "other", scale=2.0)
    # The trunk is the same: the head tells them apart.
    theirs = fingerprint(configured(other), tokenizer, autocast=None)
    assert theirs["weights"] == mine["weights"] and theirs["head"] != mine["head"]
    adapted = save_value_model(tiny_model_path, tmp_path / "adapted", lora=True)
    assert fingerprint(configured(adapted), tokenizer, autocast=None)["adapter"] is not None
    assert fingerprint(configured(value_dtype="bfloat16"), tokenizer, autocast=None) != mine


def test_value_models_that_will_not_do(configured, critic, tiny_model_path, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    check_value_model(configured(), tokenizer, model=tiny_model_path)

    def refused(name, **settings) -> str:
        with pytest.raises(UserError) as caught:
            check_value_model(configured(str(name), **settings), tokenizer, model=tiny_model_path)
        assert str(caught.value).startswith("value_model_name_or_path: ")
        return str(caught.value)

    assert "is no value model (LlamaForCausalLM)" in refused(tiny_model_path)
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "takes 512 tokens, but `max_length` is 600" in refused(critic, max_length=600, packing=True)
    other = Path(save_value_model(tiny_model_path, tmp_path / "other"))
    build_tokenizer(300).save_pretrained(other)
    assert "its values would be those of other tokens" in refused(other)
    adapted = Path(save_value_model(tiny_model_path, tmp_path / "adapted", lora=True))
    check_value_model(configured(str(adapted)), tokenizer, model=tiny_model_path)
    settings = json.loads((adapted / "adapter_config.json").read_text())
    gone = settings | {"base_model_name_or_path": str(tmp_path / "gone")}
    (adapted / "adapter_config.json").write_text(json.dumps(gone))
    assert "the base model of the adapter" in refused(adapted)
    (adapted / VALUE_CONFIG_FILE).unlink()
    assert "the adapter of a model that is no value model" in refused(adapted)
    reward = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    check_value_model(configured(str(tmp_path / "reward")), tokenizer, model=tiny_model_path)
    # Scores that are no values: the check says it before the run would.
    two = AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=2)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes))
    for model, said in (
        (two, "gives 2 scores"),
        (encoder, "has no linear layer `score` (BertForSequenceClassification)"),
    ):
        model.save_pretrained(tmp_path / "classifier")
        tokenizer.save_pretrained(tmp_path / "classifier")
        assert said in refused(tmp_path / "classifier")
        with pytest.raises(UserError, match=re.escape(said)):
            load_value_model(str(tmp_path / "classifier"), trainable=False)


def test_a_value_that_is_no_number_is_refused(configured, tiny_model_path, tmp_path):
    broken = save_value_model(save_tiny_model(tmp_path / "base"), tmp_path / "broken", scale=float("inf"))
    config = configured(broken)
    trainer = prepared(config, tiny_model_path, demonstrations(2))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    with pytest.raises(UserError, match=r"the value model gives row \d of the prepared data a value of (nan|inf|-inf)"):
        value_cache(config, tokenizer, trainer.train_dataset, trainer.data_collator, device=CPU)
