"""The recipe keys of the data."""

from dataclasses import dataclass, field

from trl import ScriptArguments

from hpt_trl.data.layout_names import FORM_LAYOUTS
from hpt_trl.settings.ranges import Rule, at_least, count_or_share

# What becomes of faulty rows.
ERROR, DROP = "error", "drop"

DATA_RULES: tuple[Rule, ...] = (count_or_share("test_split_size"), at_least(1, "shuffle_buffer"))


@dataclass
class DataArguments(ScriptArguments):
    """Where the data comes from, what its columns are and what becomes of the prompts.

    The names of `ScriptArguments` (`dataset_name`, `dataset_config`, `dataset_train_split`, `dataset_test_split`)
    keep TRL's meaning, and splits may be sliced (`train[:90%]`); `dataset_name` is a Hub id, a local file
    (.jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet, text also as .gz), several of them by a list or a pattern
    (`data/*.jsonl`), a folder (of files, written by `save_to_disk`, or a copy of a Hub repository), or generated:
    `arithmetic`, `prompts`, `pages`, `stories:<part>`, `functions:<part>` or `reasoning_gym:<task>`.
    """

    # TRL takes one name, and its parser no list with the type of its items beside a text.
    dataset_name: list | str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Data set: a Hub id, a local file, several of them (a list, or a pattern as `data/*.jsonl`), a "
            "folder, or a generated one."
        },
    )

    datasets: list[dict] | None = field(
        default=None,
        metadata={
            "help": "A mixture in place of `dataset_name`: for each data set its `path`, and where they are wanted "
            "`name`, `split`, `test_split`, `columns`, `fraction`, `column_mapping`, `dataset_layout`, `options`."
        },
    )
    dataset_options: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of a generated dataset (`arithmetic`, `prompts`, `pages`, `stories:<part>`, "
            "`functions:<part>`, `reasoning_gym:<task>`), e.g. {size: 500}."
        },
    )
    column_mapping: dict | str | None = field(
        default=None,
        metadata={
            "help": "Column that the trainer reads -> column in the data (a dotted path reaches into a struct), e.g. "
            "{prompt: question, completion: answer, answer: reward_model.ground_truth}, {chosen: better, rejected: "
            "worse}, {text: content}."
        },
    )
    dataset_layout: str | None = field(
        default=None,
        metadata={
            "help": "What the rows are, where it does not show from their columns: the layout that they become "
            "(`demonstrations`, `prompts`, `comparisons`, `documents`, `solutions`), or the form in which the file has "
            f"them ({', '.join(f'`{form}`' for form in FORM_LAYOUTS)})."
        },
    )
    on_bad_row: str = field(
        default=ERROR,
        metadata={
            "help": "What becomes of rows that cannot be read or converted, lack a part, or would be trained otherwise "
            "than they are written: `error` refuses them, `drop` leaves them out and counts them.",
            "choices": [ERROR, DROP],
        },
    )
    dataset_streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the rows as they are trained, so that data of any size needs no room: of `pretrain`, "
            "`sft`, `dpo` and `reward`, with `max_steps`."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "Rows of a stream (`dataset_streaming`) among which each next one is drawn; "
            "`train_sampling_strategy: sequential` keeps their order."
        },
    )
    # TRL's `test` would not tell a written name from none.
    dataset_test_split: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Split of the held-out rows, or slices; by default `test`, where the data has one."},
    )
    test_split_size: float | None = field(
        default=None,
        metadata={
            "help": "Training rows held out for the evaluation, a count or a share below 1; the split `test` of the "
            "data then stays unused."
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message put before every prompt (makes string prompts conversational)."}
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "Text around a string prompt; `{prompt}` stands for it, `{column}` for another column of the row, "
            "a list for a line each."
        },
    )
    conversational: bool | None = field(
        default=None,
        metadata={
            "help": "Turn string prompts and demonstrations into user and assistant messages. By default this is done "
            "when the tokenizer has a chat template."
        },
    )
