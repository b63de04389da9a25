"""The stage `pretrain`: next-token training from random weights with TRL's SFTTrainer."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, set_seed

from hpt_trl.data.layouts import Splits
from hpt_trl.data.loading import columns_for
from hpt_trl.errors import Collector, UserError
from hpt_trl.methods.pretrain.config import PretrainArguments, PretrainConfig
from hpt_trl.methods.pretrain.model import check_model_config, make_config, new_model
from hpt_trl.methods.pretrain.tokenizer import BYTES, SPECIAL, train_tokenizer
from hpt_trl.methods.sft.streamed import streamed_documents, streamed_training
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.settings.ranges import at_least

_READ_AT_ONCE = 1000


def check(recipe: Recipe) -> None:
    """Refuse what cannot work before the corpus is read.

    Raises:
        UserError: every such setting.
    """
    mistakes = Collector()
    model_args, config = recipe.model_args, recipe.config
    arguments = cast(PretrainArguments, recipe.arguments)
    if model_args.model_name_or_path:
        said = (
            f"{model_args.model_name_or_path} has weights, but a pretraining starts at random ones; drop it (its "
            "config can be taken by `model_config_name_or_path`, its tokenizer by `tokenizer_name_or_path`)."
        )
        mistakes.note(recipe.error("model_name_or_path", said))
    if model_args.use_peft:
        said = "an adapter changes a trained model a little, and would leave these random weights random; drop it."
        mistakes.note(recipe.error("use_peft", f"true: {said}"))
    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, key):
            mistakes.note(recipe.error(key, "true: quantized weights are frozen, and these are random yet; drop it."))
    if config.max_length is None:
        mistakes.note(recipe.error("max_length", "null: it is the length of a block; write e.g. 1024."))
    if config.dataset_text_field != "text":
        said = f"{config.dataset_text_field}: write `column_mapping: {{text: {config.dataset_text_field}}}` instead."
        mistakes.note(recipe.error("dataset_text_field", said))
    if config.chat_template_path is not None and not Path(config.chat_template_path).is_file():
        said = f"there is no file {config.chat_template_path}; name a .jinja file."
        mistakes.note(recipe.error("chat_template_path", said))
    with mistakes.noted():
        _check_tokenizer_keys(recipe, arguments)
    with mistakes.noted():
        check_model_config(recipe)
    mistakes.settle()


def make_tokenizer(recipe: Recipe, splits: Splits) -> PreTrainedTokenizerBase:
    """Load the tokenizer, or train it on the training split; then see that the split fills a block.

    Raises:
        UserError: no such tokenizer, a vocabulary that the corpus does not support, or a corpus below one block.
    """
    arguments = cast(PretrainArguments, recipe.arguments)
    if arguments.tokenizer_name_or_path is not None:
        tokenizer = _load_tokenizer(recipe, arguments.tokenizer_name_or_path)
    else:
        tokenizer = _train_tokenizer(recipe, arguments, splits)
    # A stream begins anew where it ends.
    if splits.stream is None:
        _check_corpus(recipe, tokenizer, splits)
    return tokenizer


def build(inputs: StageInputs) -> Trainer:
    assert inputs.model_config is not None
    # The weights are the seed's, whatever was drawn before.
    set_seed(inputs.config.seed)
    model = new_model(
        inputs.model_config, dtype=inputs.model_args.dtype, attention=inputs.model_args.attn_implementation
    )
    taken = {"train_dataset": columns_for(inputs.splits.train, "text"), "callbacks": inputs.callbacks}
    if inputs.splits.stream is not None:
        taken = streamed_training(inputs)
    return MeasuredSFTTrainer(
        model=model,
        args=inputs.config,
        eval_dataset=columns_for(inputs.splits.test, "text"),
        processing_class=inputs.tokenizer,
        **taken,
    )


def _check_tokenizer_keys(recipe: Recipe, arguments: PretrainArguments) -> None:
    name, size = arguments.tokenizer_name_or_path, arguments.tokenizer_vocab_size
    if name is None and size is None:
        raise recipe.error(
            "tokenizer_vocab_size",
            "a new model needs a tokenizer: write its size, e.g. 8192, to train one on the corpus, or name a "
            "`tokenizer_name_or_path`.",
        )
    if name is not None:
        for key in ("tokenizer_vocab_size", "tokenizer_special_tokens"):
            if getattr(arguments, key) is not None:
                raise recipe.error(key, f"`tokenizer_name_or_path: {name}` is complete as it is; keep one of the two.")
        return
    special = len({*SPECIAL, *(arguments.tokenizer_special_tokens or [])})
    if size is not None and size < BYTES + special:
        raise recipe.error(
            "tokenizer_vocab_size", f"{size}: {BYTES} bytes and {special} special tokens are {BYTES + special} already."
        )


def _load_tokenizer(recipe: Recipe, name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = load_tokenizer(name)
    except UserError as error:
        message = str(error).removeprefix("model_name_or_path: ")
        raise recipe.error("tokenizer_name_or_path", message) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise recipe.error("tokenizer_name_or_path", f"{name} has a processor for images; name a text model's.")
    if tokenizer.eos_token is None:
        raise recipe.error(
            "tokenizer_name_or_path", f"{name} has no end-of-sequence token, which has to close every document."
        )
    return tokenizer


def _train_tokenizer(recipe: Recipe, arguments: PretrainArguments, splits: Splits) -> PreTrainedTokenizerBase:
    rows, most, size = splits.train, arguments.tokenizer_training_rows, arguments.tokenizer_vocab_size
    texts: Iterator[str]
    if splits.stream is not None:
        texts, said = islice(streamed_documents(splits, arguments), most), f"first {most:,}"
    else:
        if len(rows) > most:
            rows = rows.select([index * len(rows) // most for index in range(most)])
        texts, said = (text for batch in _batches(rows) for text in batch), f"{len(rows):,}"
    tokenizer = train_tokenizer(texts, cast(int, size), arguments.tokenizer_special_tokens or [])
    if len(tokenizer) < cast(int, size):
        raise recipe.error(
            "tokenizer_vocab_size",
            f"{size}: the {said} documents of {splits.source} support {len(tokenizer)} tokens; write at most that, or "
            "train on more text.",
        )
    return tokenizer


def _check_corpus(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, splits: Splits) -> None:
    block, tokens = recipe.config.max_length, 0
    for texts in _batches(splits.train):
        ids = tokenizer(text=[text + str(tokenizer.eos_token) for text in texts])["input_ids"]
        tokens += sum(len(row) for row in ids)
        if tokens >= block:
            return
    raise recipe.error(
        "max_length",
        f"a block of {block} tokens, but {splits.source} has {tokens} in all ({len(splits.train):,} documents); write "
        f"at most {tokens}, or train on more text.",
    )


def _batches(rows: Dataset) -> Iterator[list[str]]:
    return (batch["text"] for batch in rows.select_columns("text").iter(batch_size=_READ_AT_ONCE))


STAGE = Stage(
    name="pretrain",
    config_class=PretrainConfig,
    argument_class=PretrainArguments,
    check=check,
    build=build,
    rules=(at_least(1, "tokenizer_training_rows", "tokenizer_vocab_size"),),
    layouts=("documents",),
    measures_held_out=True,
    make_tokenizer=make_tokenizer,
    make_config=make_config,
)
