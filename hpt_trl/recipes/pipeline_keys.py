"""What the file of a pipeline may hold beside the keys of its stages' recipes."""

PIPELINE = "pipeline"

# Key of the pipeline itself -> what it takes.
PIPELINE_KEYS = {
    "stage": "pipeline",
    "output_dir": "the folder of all stages, e.g. `output_dir: outputs/my-pipeline`",
    "stages": "a mapping of names to stages",
    "accelerate_config": "a file of `accelerate config`, or the name of one of accelerate_configs/",
    "num_processes": "a whole number",
    "overwrite": "true or false",
}

# A stage's short keys -> the recipe's.
ALIASES = {
    "model": "model_name_or_path",
    "reward_model": "reward_model_name_or_path",
    "reference": "reference_model_name_or_path",
    "value_model": "value_model_name_or_path",
}

# Beginning of a reference to another stage.
FROM = "from:"
# Keys that a reference can stand in.
REFERRING = (*ALIASES.values(), "search_index", "against", "dataset_name")
# What the pipeline sets by itself.
SET_BY_PIPELINE = ("output_dir", "overwrite", "resume_from_checkpoint")
# A stage's name, as a pattern. With what is put after it, its folder's is at most 255 letters.
STAGE_NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
