"""Keys, values and words that nobody would write."""

import json

from hypothesis import strategies as st

from hpt_trl.recipes.declared import KEYS_FILE

KEYS = sorted(json.loads(KEYS_FILE.read_text())["keys"])
_FOREIGN = [
    *(
        "torch_dtype",
        "warmup_ratio",
        "dataset_mixture",
        "dataset_mixer",
        "dataset_splits",
        "chat_template",
        "benchmarks",
    ),
    *("max_seq_length", "max_prompt_length", "overwrite_output_dir", "callbacks", "vllm_device", "wandb_project"),
    *("kl_coef", "group_by_length", "dataset_prompt_column", "code_language", "cosine_max_len", "pass_rate_min"),
]
_ODD = [
    "",
    "\0",
    "\ud800",
    "\u2028",
    "é",
    "\U0001d538",
    "null",
    "~",
    "true",
    "no",
    "1e400",
    "-1",
    "0x10",
    "nan",
    ".inf",
    "{",
    "[[",
]
_PATHS = ["/dev/null", "/proc/x", "~nobody/x", "x" * 300, "a/b/c", ".", "..", "/", "outputs/x", "x.jsonl", "*.jsonl"]
TEXTS = st.one_of(st.sampled_from([*_ODD, *_PATHS]), st.text(max_size=30))
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-(10**40), 10**40), st.floats(allow_nan=True, allow_infinity=True), st.just(10**400)
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
NAMES = st.one_of(st.sampled_from(KEYS), st.sampled_from(_FOREIGN), st.text(max_size=12))

WORDS = st.lists(
    st.one_of(
        st.sampled_from(KEYS).map("--{}".format),
        st.builds("--{}={}".format, st.sampled_from(KEYS), TEXTS),
        st.builds("--{}={}".format, NAMES, TEXTS),
        st.sampled_from(
            ["--help", "-h", "--json", "--accelerate", "--num_processes", "--launcher", "ray", "--", "-", "--x.y", "="]
        ),
        st.sampled_from(
            [
                "--top_k",
                "--prompt",
                "--hub_model_id",
                "--revision",
                "--model",
                "--layouts",
                "--overwrite",
                "--temperature",
            ]
        ),
        st.sampled_from(["recipe.yaml", "quickstart", "a/b", "nowhere", "chart", "rows.jsonl", "."]),
        st.sampled_from(
            ["cpu", "fsdp2", "nope", "--num_machines", "--machine_rank", "--max_failures", "--num_workers"]
        ),
        TEXTS,
        NUMBERS.map(str),
    ),
    max_size=7,
)
