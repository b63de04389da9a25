"""What `check` knows of lengths: demonstrations with their own prompts, and the micro-batches that hold them."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from hpt_trl.cli import main
from hpt_trl.planning.facts import estimate_of
from hpt_trl.planning.lengths import Lengths, measured_rows
from hpt_trl.planning.memory_batches import _largest, demonstrated_batches, prompts_at_once
from hpt_trl.planning.memory_sizes import Batch
from hpt_trl.planning.rows import describe_rows
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.building import build_trainer
from hpt_trl.runs.preparation import prepare_recipe
from tests.helpers.images import image_rows
from tests.helpers.rollouts import FixedHPT, rows, train

BASE = {
    "stage": "hpt",
    "reward_funcs": "math_answer",
    "max_completion_length": 12,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "loss_type": "grpo",
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
}


def recipe_of(folder: Path, model: str, words: tuple[str, ...] = (), **settings):
    data = folder / "rows.jsonl"
    if not data.exists():
        given = [row | {"answer": str(4 * number)} for number, row in enumerate(rows(["mixed"] * 8).to_list())]
        data.write_text("".join(json.dumps(row) + "\n" for row in given))
    keys = {"model_name_or_path": model, "dataset_name": str(data), "output_dir": str(folder / "out")}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(BASE | keys | settings))
    return read_recipe(path, list(words))


def test_demonstrations_count_with_their_own_prompt(tiny_model_path, tmp_path):
    """The longest sum of a row, and not the sum of the longest; of a row that is far behind the others, too."""
    said = [("Add 1 and 1 " * 30, "#### 2", 1), ("Say much.", "well " * 80 + "#### 2", 1100), ("Hello.", "#### 2", 1)]
    given = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": answer}],
            "answer": "2",
        }
        # The row of much text comes last.
        for prompt, answer, count in sorted(said, key=lambda one: len(one[1]))
        for _ in range(1 if answer.startswith("well") else 600)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    prepared = prepare_recipe(recipe_of(tmp_path, tiny_model_path))
    lines, lengths = describe_rows(prepared)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    prompts = [
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        for row in given
    ]
    last = tokenizer.apply_chat_template(given[-1]["prompt"] + given[-1]["completion"], return_dict=False)
    # A rollout stops at its end-of-sequence token, what the template writes behind it is not trained.
    whole = len(last) - last[::-1].index(tokenizer.eos_token_id)
    assert lengths.longest == max(prompts) and lengths.demonstration == (prompts[-1], whole - prompts[-1])
    assert lengths.mean == pytest.approx(sum(prompts[:1000]) / 1000)
    assert f"with their demonstration {whole}" in dict(lines)["data"] and whole > 12 + prompts[-1]
    cut = ("--max_demonstration_length", "12")
    # As wide as the longest prompt with a rollout, however long the answer was.
    shorter = prepare_recipe(recipe_of(tmp_path, tiny_model_path, cut))
    assert sum(describe_rows(shorter)[1].demonstration) < max(prompts) + 12
    assert estimate_of(prepared).activations > 1.1 * estimate_of(shorter).activations


def test_the_longest_rows_are_among_those_that_are_measured():
    from datasets import Dataset

    data = Dataset.from_list([{"text": "a" * (i % 7), "other": i} for i in range(3000)] + [{"text": "b" * 99}] * 3)
    some, count = measured_rows(data, ("text", "absent"))
    assert count == 1000 and len(some) == 1100 and some[:1000] == data[:1000]
    assert some["text"][-3:] == ["b" * 99] * 3 and {len(text) for text in some["text"][1000:-3]} == {6}
    few = data.select(range(20))
    assert measured_rows(few, ("text",)) == (few, 20)


def longer(row: dict) -> dict:
    """The row with an answer that is longer than any rollout."""
    return {"completion": [{"role": "assistant", "content": row["completion"][0]["content"] + " and on" * 12}]}


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        # Of eight prompts one is not solved: 28 rollouts and a demonstration for four micro-batches of 8.
        ({}, ["mixed"] * 5 + ["fail"] + ["mixed"] * 2),
        ({"unify_strategy": "soft", "soft_table": "on_sft"}, ["mixed"] * 8),
        ({"unify_strategy": "soft", "soft_table": "on_off", "demonstration_reward": 1.5}, ["mixed"] * 8),
        ({"unify_strategy": "soft", "soft_table": "on_sft", "offline_loss_type": "srft"}, ["mixed"] * 8),
        ({"skip_dead_rows": False}, ["fail"] * 8),
        ({"entropy_coef": 0.01}, ["mixed"] * 5 + ["fail"] + ["mixed"] * 2),
        ({"entropy_coef": 0.01, "unify_strategy": "soft", "soft_table": "on_sft"}, ["mixed"] * 8),
        ({"beta": 0.1}, ["fail"] * 8),
        (
            {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2},
            ["mixed"] * 5 + ["fail"] + ["mixed"] * 2,
        ),
    ],
)
def test_micro_batches_are_those_of_the_training(tiny_model_path, tmp_path, settings, kinds):
    """What the trainer forwarded, of rollouts of 1 to 12 tokens and demonstrations that are longer."""
    settings = {"gradient_accumulation_steps": 4} | settings
    trainer = train(
        FixedHPT,
        tiny_model_path,
        tmp_path,
        dataset=rows(kinds).map(longer),
        kinds=kinds,
        reward=lambda completion_ids, kind, **_: [
            0.0 if name == "fail" else float(place % 4 == 0) for place, name in enumerate(kind)
        ],
        **settings,
    )
    batches = []
    for buffer in trainer._buffered_inputs:
        micro = buffer["hybrid"]
        width = buffer["prompt_ids"].size(1) + buffer["completion_ids"].size(1)
        forwarded = (
            (len(buffer["prompt_ids"]), width)
            if micro.forward is None
            else tuple(micro.forward.arguments["input_ids"].shape)
        )
        batches.append((*forwarded, len(micro.demonstration_mask)))
    encoder = trainer._encoder
    pairs = []
    for row in trainer.train_dataset:
        encoded = encoder.answered(row, "completion")
        end = len(encoded.ids) - encoded.ids[::-1].index(encoder.end_ids[0])
        pairs.append((encoded.context, end - encoded.context))
    lengths = Lengths(max(prompt for prompt, _ in pairs), 0.0, max(pairs, key=sum))
    recipe = recipe_of(tmp_path, tiny_model_path, **settings)
    predicted = demonstrated_batches(recipe, AutoConfig.from_pretrained(tiny_model_path), lengths)
    stock = (recipe.config.per_device_train_batch_size, lengths.longest + 12)
    expected = [stock, *((batch.rows, batch.length) for batch in predicted)]
    for height, width, _ in batches:
        assert any(height <= rows and width <= length for rows, length in expected), (batches, expected)
    # No more than is needed: the widest batch with a demonstration is as high as it was said to be.
    widest = max(width for _, width, demonstrations in batches if demonstrations)
    reached = max(height for height, width, demonstrations in batches if demonstrations and width == widest)
    assert widest == sum(lengths.demonstration) > stock[1]
    highest = max(batch.rows for batch in predicted if batch.length == widest)
    # Which micro-batches the gated rollouts leave, is the shuffle's to say: at worst each of them one.
    assert reached == highest or ("entropy_coef" in settings and highest - 3 < reached < highest)


def test_micro_batches_of_one_size_are_counted_once():
    """Two of as many tokens, or of one height and width, do not rule each other out."""
    packed = [Batch(4, 10, 10, 20, 40), Batch(3, 12, 14, 20, 40), Batch(3, 12, 14, 20, 30)]
    assert [(one.tokens, one.completed) for one in _largest(packed)] == [(60, 40)]
    assert [(one.rows, one.length) for one in _largest([Batch(4, 10, 10), Batch(4, 12, 8)])] == [(4, 20)]


def test_prompts_are_shared_where_a_micro_batch_has_their_rollouts(tiny_model_path, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model_path)
    shape = {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}

    def prompts(**settings) -> int | None:
        return prompts_at_once(recipe_of(tmp_path, tiny_model_path, **shape, **settings), config)

    assert [prompts(stage=stage, steps_per_generation=2) for stage in ("grpo", "ppo", "hpt")] == [2, 2, 2]
    # Those of two steps are shuffled; a bonus that goes by the micro-batch leaves rows where they are.
    assert prompts(stage="grpo", steps_per_generation=4) is None
    assert prompts(stage="grpo", steps_per_generation=2, entropy_coef=0.01) is None
    # Dropout is drawn for each row, that of an adapter by default.
    assert prompts(stage="grpo", steps_per_generation=2, use_peft=True) is None
    assert prompts(stage="grpo", steps_per_generation=2, use_peft=True, lora_dropout=0.0) == 2
    rows = {"unify_strategy": "soft", "soft_table": "on_sft", "padding_free": True}
    lengths = Lengths(90, 90.0, (90, 10))
    one, several = (
        demonstrated_batches(
            recipe_of(tmp_path, tiny_model_path, **shape, **rows, steps_per_generation=n), config, lengths
        )
        for n in (2, 4)
    )
    assert max(batch.prompt_tokens for batch in one) < 90 * 8 <= max(batch.prompt_tokens for batch in several)


def test_a_recipe_without_demonstrations_has_no_such_batches(tiny_model_path, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model_path)
    for settings in ({"unify_strategy": "no"}, {"switch_gate": -1}):
        assert demonstrated_batches(recipe_of(tmp_path, tiny_model_path, **settings), config, Lengths(9, 9.0)) == ()
    grpo = recipe_of(tmp_path, tiny_model_path, stage="grpo")
    assert demonstrated_batches(grpo, config, Lengths(9, 9.0)) == ()


def test_answers_to_images_count_with_what_stands_for_an_image(vlm_path, tmp_path, capsys):
    """As wide as the batch of the trainer's own collator; and what is not counted is said."""
    image_rows().remove_columns("kind").to_parquet(tmp_path / "rows.parquet")
    words = {"stage": "sft", "model_name_or_path": vlm_path, "max_steps": 1, "max_length": None, "bf16": False}
    words |= {"dataset_name": str(tmp_path / "rows.parquet"), "output_dir": str(tmp_path / "out"), "report_to": "none"}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(words | {"use_cpu": True}))
    prepared = prepare_recipe(read_recipe(path, []))
    trainer = build_trainer(prepared, [])
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert describe_rows(prepared)[1].longest == int(batch["attention_mask"].sum(1).max())
    assert main(["check", str(path)]) == 0
    assert "without what the vision tower computes" in capsys.readouterr().out
