"""The stage `evaluate`: recipes that measure a model and train nothing."""

from dataclasses import dataclass, field, fields

from transformers import PreTrainedTokenizerBase, ProcessorMixin, StopStringCriteria
from trl import ModelConfig

from hpt_trl.data.layouts import NO_PROMPTS, Splits
from hpt_trl.data.objects import column_values
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.arguments import ENVIRONMENT_RULES
from hpt_trl.errors import Collector, UserError
from hpt_trl.evaluation.measuring import AVERAGE, DEMONSTRATIONS, MAJORITY, MEASURES, PASS, PERPLEXITY, SCORED, WIN_RATE
from hpt_trl.evaluation.win_rate import check_against
from hpt_trl.methods.environments import ActingArguments, acting_arguments, check_environment
from hpt_trl.methods.evaluate.config import TRAINING_KEYS, EvaluateConfig
from hpt_trl.recipes.arguments import RecipeArguments
from hpt_trl.recipes.recipe import Recipe, Stage
from hpt_trl.rewards.completions import text_tokenizer
from hpt_trl.settings.ranges import above, at_least, one_of, share

# Rewards that run code against tests.
_CODE = ("code_tests", "all_code_tests")
# Of the settings of every stage, those of a training, of an adapter that is trained, and of its evaluations.
_OF_TRAINING = (
    "lora_",
    "use_peft",
    "use_rslora",
    "use_dora",
    "eval_",
    "evaluations",
    "stop_on_warnings",
    "global_batch_size",
    "shipped_heads",
    "hub_",
)
_LEFT_OUT = TRAINING_KEYS | {
    item.name for kind in (ModelConfig, RecipeArguments) for item in fields(kind) if item.name.startswith(_OF_TRAINING)
}


@dataclass
class EvaluateArguments(ActingArguments):
    """Which rows are measured."""

    # Where a figure is at stake, a program that was not begun in time is not one that is wrong.
    code_batch_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that all programs of one batch of completions may take together; null for no limit."
        },
    )
    max_rows: int | None = field(
        default=None,
        metadata={"help": "Rows that are measured at most, drawn as a training's `eval_samples` are; by default all."},
    )


def measures_of(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe measures: what it names, or what its rewards are for."""
    config, rewards = recipe.config, recipe.arguments.reward_funcs or []
    if config.measures is not None:
        return tuple(dict.fromkeys(config.measures))
    if any(name in _CODE for name in rewards):
        return (PASS,)
    if rewards or recipe.arguments.reward_model_name_or_path:
        return (AVERAGE, MAJORITY) if config.n > 1 and rewards else (AVERAGE,)
    return (PERPLEXITY,)


def check(recipe: Recipe) -> None:
    """Refuse what cannot be measured, before the data is read.

    Raises:
        UserError: every such setting.
    """
    mistakes, config, measures = Collector(), recipe.config, measures_of(recipe)
    rewards = [*(recipe.arguments.reward_funcs or []), *(recipe.arguments.reward_model_name_or_path or [])]
    scored = [measure for measure in measures if measure in SCORED]
    if scored and not rewards:
        mistakes.note(
            recipe.error(
                "reward_funcs", f"`{scored[0]}` scores completions; name at least one reward, e.g. `[math_answer]`."
            )
        )
    if scored and recipe.arguments.dataset_layout == "documents":
        mistakes.note(recipe.error("dataset_layout", f"{NO_PROMPTS}, which `{scored[0]}` needs; write `prompts`."))
    with mistakes.noted():
        check_environment(recipe)
    if acting_arguments(recipe).environment is not None:
        for key, why in (
            ("stop", "a turn ends on the model's own end token"),
            ("vllm", "the turns of an environment are drawn with transformers in an evaluation"),
        ):
            if recipe.raw.get(key):
                mistakes.note(recipe.error(key, f"{why}; drop the line."))
        if PERPLEXITY in measures:
            mistakes.note(
                recipe.error("measures", "`perplexity` reads texts, and no turns of an environment; drop it.")
            )
        if recipe.config.against == DEMONSTRATIONS:
            mistakes.note(
                recipe.error("against", "trajectories are not scored; name the folder of another evaluation.")
            )
    if rewards and not scored:
        mistakes.note(
            recipe.error("reward_funcs", "`perplexity` scores no completions; drop the line, or name more measures.")
        )
    if recipe.profile.spreads_weights:
        mistakes.note(
            recipe.error(
                "stage",
                "evaluate holds the whole model in each process; allowed: a profile that does not share it out, as "
                "`--accelerate multi_gpu`, or `vllm: colocate` with `vllm_tensor_parallel_size`.",
            )
        )
    if config.use_vllm and recipe.world_size > 1:
        mistakes.note(
            recipe.error(
                "vllm",
                "vLLM spreads the work itself (`vllm_tensor_parallel_size`); start one process, without a launcher.",
            )
        )
    if config.use_vllm and config.model_init_kwargs:
        mistakes.note(
            recipe.error("model_init_kwargs", "vLLM loads the model by its own settings; drop the line, or `vllm`.")
        )
    if config.use_vllm and recipe.model_args.load_in_8bit:
        mistakes.note(
            recipe.error("load_in_8bit", "vLLM reads 4 bits alone (`load_in_4bit`); drop the line, or `vllm`.")
        )
    if config.use_vllm and PERPLEXITY in measures:
        mistakes.note(
            recipe.error("vllm", "`perplexity` is computed with transformers; measure it by a recipe of its own.")
        )
    mistakes.settle()


def check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
    """Refuse texts of `stop` that no tokens write.

    Raises:
        UserError: the first such text.
    """
    if recipe.config.use_vllm:  # looks at the text itself
        return
    written = text_tokenizer(tokenizer)
    for text in recipe.config.stop or ():
        unknown = written.unk_token_id is not None and written.unk_token_id in written(text)["input_ids"]
        try:
            # Raises also where the end of the text alone is unknown, or the tokenizer is none for which it can be told.
            StopStringCriteria(written, [text])
        except ValueError:
            unknown = True
        if unknown:
            raise recipe.error(
                "stop",
                f"{text!r} cannot end a completion: tokens of {recipe.model_args.model_name_or_path} do not write it. "
                "Drop it.",
            )


def check_rows(recipe: Recipe, splits: Splits, encoder: Encoder, positions: int | None) -> None:
    """Refuse rows without the answer that is to be measured, and another evaluation that is of other rows.

    Raises:
        UserError: the first such row, or what the other evaluation lacks.
    """
    measures = measures_of(recipe)
    scored = [measure for measure in measures if measure in SCORED]
    if scored and splits.layout == "documents":
        raise UserError(
            f"{splits.source}: {NO_PROMPTS}, which `{scored[0]}` needs; write `measures: [perplexity]`, or name the "
            "prompts, e.g. `column_mapping: {prompt: text}`."
        )
    if WIN_RATE in measures and recipe.config.against != DEMONSTRATIONS:
        try:
            check_against(recipe.config.against, splits.train)
        except UserError as error:
            raise recipe.error("against", str(error).removeprefix("against: ")) from error
    if splits.layout == "documents" or not (PERPLEXITY in measures or recipe.config.against == DEMONSTRATIONS):
        return
    column = splits.demonstration_column
    rows = splits.train
    answers = column_values(rows, column) if column in rows.column_names else [None] * len(rows)
    for row, answer in zip(rows[ROW], answers, strict=True):
        if not answer:
            why = "`perplexity` is that of the rows' answers" if PERPLEXITY in measures else "`against` names it"
            raise UserError(
                f"{where(splits.source, row)}: there is no `{column}`, and {why}. Name the column that holds it, e.g. "
                f"column_mapping: {{{column}: solution}}, or write `dataset_layout: documents` for plain text."
            )


STAGE = Stage(
    name="evaluate",
    config_class=EvaluateConfig,
    argument_class=EvaluateArguments,
    environment=lambda arguments: arguments.environment,
    most_rows=lambda arguments: arguments.max_rows,
    left_out=frozenset(_LEFT_OUT),
    check=check,
    check_tokenizer=check_tokenizer,
    check_rows=check_rows,
    rules=(
        at_least(1, "n", "max_rows", "max_completion_length", "vllm_tensor_parallel_size", "vllm_max_model_length"),
        at_least(2, "max_length"),
        at_least(0, "temperature", "top_k"),
        above(0, "repetition_penalty"),
        share("top_p", "vllm_gpu_memory_utilization", zero=False),
        share("min_p"),
        one_of("measures", *MEASURES),
        *ENVIRONMENT_RULES,
    ),
    layouts=("prompts", "demonstrations", "documents"),
    rewards="optional",
    completion_length=lambda config: config.max_completion_length,
    counts_solved=lambda recipe: any(measure in (PASS, AVERAGE, MAJORITY) for measure in measures_of(recipe)),
    success_threshold=lambda config: config.success_threshold,
)
