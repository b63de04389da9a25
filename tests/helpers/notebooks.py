"""The notebooks on tiny settings: in seconds, and with something to see in each display."""

import json
from pathlib import Path

import yaml

_SETTINGS = Path(__file__).with_suffix(".yaml")
# Of a notebook whose runs need other settings than those of its recipes.
_OWN = {
    # A model that has learnt nothing yet tells no story, and without its shift a prompt would have no reward at all.
    "reward_shift": {
        "ppo/stories-tiny": {
            "reward_funcs": ["tests.helpers.notebooks.story_score", "my_shifted_reward.shifted"],
            "reward_weights": [1.0, 1.0],
        }
    }
}


def trial_file(folder: Path, tiny_model: str, notebook: str) -> Path:
    """Writes the file that HPT_TRL_TRIAL names."""
    settings = yaml.safe_load(_SETTINGS.read_text().replace("TINY", tiny_model))
    for recipe, own in _OWN.get(notebook, {}).items():
        settings[recipe] |= own
    path = folder / "trial.yaml"
    path.write_text(json.dumps(settings))
    return path


def vowels(prompts, completions, **columns) -> list[float]:
    """A reward that tells the completions of an untrained model apart."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(len(text), 1) for text in completions]


def story_score(prompts, completions, **columns) -> list[float]:
    """The same under the name of the notebook's reward."""
    return vowels(prompts, completions)
