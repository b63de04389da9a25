"""The ranges of the keys about models: those of TRL's `ModelConfig`, which takes them unchecked."""

from hpt_trl.settings.ranges import Rule, at_least, share

MODEL_RULES: tuple[Rule, ...] = (at_least(1, "lora_r", "lora_alpha"), share("lora_dropout", one=False))
