"""The tasks and the arms of `benchmarks.ppo_against_trl`, and the files that both sides read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForSequenceClassification

from benchmarks.ppo_processes import TRL
from benchmarks.ppo_workers import Setup, our_config
from hpt_trl.data.reading.sources import read_source
from hpt_trl.errors import UserError
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.bundled import find_recipe

STOCK = f"TRL {TRL}"
# Of an arm: settings of PPOConfig above the shared ones; None is the stock trainer.
Arms = dict[str, dict[str, Any] | None]


class Refused(Exception):
    """A mistake on the command line."""


@dataclass(frozen=True)
class Task:
    """What is learnt; its settings where the command line says nothing.

    Attributes:
        recipe: whose prompts they are, and whose reward: the rule of the positive words. None: the prompts of the
            stories, and a reward model that the command line names.
        model: None: the command line must name it.
        lora_r: as of `Setup`.
    """

    recipe: str | None
    model: str | None
    updates: int
    batch: int
    mini_batches: int
    response: int
    learning_rate: float
    kl_coef: float
    lora_r: int


TASKS = {
    "stories": Task(None, None, 30, 64, 2, 48, 3e-4, 0.1, 0),
    "positive-words": Task("ppo/smollm2-135m-positive-words", "smollm2-135m", 12, 48, 1, 10, 5e-4, 0.1, 16),
}


def read_arms(words: list[str], file: str | None, *, stock: bool) -> Arms:
    """Reads arms.

    Args:
        words: each `NAME`, or `NAME: key=value key=value`.
        file: YAML (or JSON), a mapping of names to mappings.
        stock: whether the stock trainer is one, the first.

    Raises:
        Refused: a name without a meaning, or twice.
    """
    arms: Arms = {STOCK: None} if stock else {}
    given: list[tuple[str, dict[str, Any]]] = []
    for word in words:
        name, _, overrides = word.partition(":")
        pairs = [pair.partition("=") for pair in overrides.split()]
        if not name.strip() or not all(key and sign and value for key, sign, value in pairs):
            raise Refused(f'--arm "{word}": write "NAME: key=value key=value", or a name alone for the defaults.')
        given.append((name.strip(), {key: yaml.safe_load(value) for key, _, value in pairs}))
    if file is not None:
        content = yaml.safe_load(Path(file).read_text())
        if not isinstance(content, dict) or not all(isinstance(found, dict | None) for found in content.values()):
            raise Refused(f"{file}: write a mapping of arms to their settings, `{{head: {{}}, …}}`.")
        given += [(str(name), found or {}) for name, found in content.items()]
    for name, settings in given:
        if name in arms:
            raise Refused(f"Two arms are called `{name}`.")
        arms[name] = {key: _number(value) for key, value in settings.items()}
    return arms


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as a text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def prepare(settings: dict[str, Any], folder: Path, *, recipe: str | None, count: int | None) -> dict[str, Any]:
    """Writes what both sides read: tokenizer, prompts and, where no reward model is named, an untrained classifier.

    Args:
        settings: `model`, `reward_model`, and what else of `Setup` the sides share.
        recipe: as of `Task`.
        count: how many of the prompts; None: all.

    Returns:
        The fields of `Setup` but the arm's and the seed.
    """
    model = resolve_model(settings["model"])
    tokenizer: Any = load_tokenizer(model)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # The stock trainer takes a completion's first padding token for its end: an EOS would not be part of it.
        others = {tokenizer.unk_token, tokenizer.bos_token} - {None, tokenizer.eos_token}
        if not others:
            raise Refused("The tokenizer's padding token is its EOS, and it has no other special token to pad with.")
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token in others else tokenizer.bos_token
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder / "tokenizer")
    value_model = settings["reward_model"]
    if value_model is None:
        torch.manual_seed(0)
        classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        classifier.config.pad_token_id = tokenizer.pad_token_id
        value_model = str(folder / "classifier")
        classifier.save_pretrained(value_model)
    source: dict[str, Any] = {"dataset_name": "stories:prompts"}
    if recipe is not None:
        keys = yaml.safe_load(find_recipe(recipe).read_text())
        source = {name: keys[name] for name in ("dataset_name", "dataset_options")}
    (dataset, _), _ = read_source(RecipeArguments(**source), seed=0)
    if len(dataset) < settings["batch"]:
        raise Refused(f"{source['dataset_name']} has {len(dataset)} prompts; a batch takes {settings['batch']}.")
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in dataset[:count]["prompt"]]
    rows = [{"prompt": text, "prompt_tokens": tokenizer(text)["input_ids"]} for text in texts]
    (folder / "rows.json").write_text(json.dumps(rows))
    return settings | {
        "model": model,
        "reward_model": value_model if recipe is None else None,
        "value_model": value_model,
        "tokenizer": str(folder / "tokenizer"),
        "rows": str(folder / "rows.json"),
        "output_dir": str(folder / "output"),
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
    }


def setup_of(prepared: dict[str, Any], name: str, overrides: dict[str, Any] | None, seed: int) -> Setup:
    """What a worker of an arm is given.

    `MODEL` and `REWARD_MODEL` as values of its settings are the folders; the second is None where a rule is the reward.

    Raises:
        Refused: settings that PPOConfig does not take.
    """
    folders = {"MODEL": prepared["model"], "REWARD_MODEL": prepared["reward_model"]}
    if overrides is None:
        return Setup(arm=name, overrides=None, seed=seed, **prepared)
    filled = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in overrides.items()}
    setup = Setup(arm=name, overrides=filled, seed=seed, **prepared)
    try:
        our_config(setup)
    except (TypeError, ValueError, UserError) as error:
        raise Refused(f"The arm `{name}`: {error}") from error
    return setup
