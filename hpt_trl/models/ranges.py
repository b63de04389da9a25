"""The ranges of the keys about models: those of TRL's `ModelConfig`, which takes them unchecked."""

from hpt_trl.settings.ranges import Rule, at_least, one_of, share

MODEL_RULES: tuple[Rule, ...] = (
    at_least(1, "lora_r", "lora_alpha"),
    share("lora_dropout", one=False),
    one_of("lora_task_type", "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    one_of("bnb_4bit_quant_storage", "uint8", "int8", "float16", "bfloat16", "float32", "float64"),
)
