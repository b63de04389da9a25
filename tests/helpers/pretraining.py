"""A tiny model from random weights: its config, and the keys of a recipe that trains it on stories."""

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

PRETRAINING = {
    "model_config": MODEL,
    "model_name_or_path": None,
    "tokenizer_vocab_size": 400,
    "dataset_name": "stories:documents",
    "dataset_options": {"size": 200, "test_size": 20},
    "test_split_size": None,
    "max_length": 64,
}
