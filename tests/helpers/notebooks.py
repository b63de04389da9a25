"""The notebooks on tiny settings: in seconds, and with something to see in each display."""

from pathlib import Path

_SETTINGS = Path(__file__).with_suffix(".yaml")


def trial_file(folder: Path, tiny_model: str) -> Path:
    """Writes the file that HPT_TRL_TRIAL names."""
    path = folder / "trial.yaml"
    path.write_text(_SETTINGS.read_text().replace("TINY", tiny_model))
    return path


def vowels(prompts, completions, **columns) -> list[float]:
    """A reward that tells the completions of an untrained model apart."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(len(text), 1) for text in completions]
