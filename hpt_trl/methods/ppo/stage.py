"""The stage `ppo`: recipes that train with PPOTrainer."""

from transformers import PreTrainedTokenizerBase, Trainer

from hpt_trl.errors import UserError
from hpt_trl.methods.ppo.config import PPOConfig, refuse_what_cannot_work
from hpt_trl.methods.ppo.critics.branch import branch_layers
from hpt_trl.methods.ppo.trainer import PPOTrainer
from hpt_trl.models.loading import load_config
from hpt_trl.models.parameters import build_on_meta
from hpt_trl.recipes.recipe import Recipe, Stage, StageInputs
from hpt_trl.rewards.completions import text_tokenizer
from hpt_trl.rollouts.ranges import ROLLOUT_RULES
from hpt_trl.rollouts.sampling import check_sampling
from hpt_trl.settings.ranges import Rule
from hpt_trl.token_scores.values import check_scores, value_source


def check(recipe: Recipe) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded."""
    try:
        refuse_what_cannot_work(recipe.config)
        check_sampling(recipe.config)
    except ValueError as error:
        raise recipe.place(error) from None


def check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a critic that the model cannot have, and a value model that is none or does not read the policy's tokens.

    Raises:
        UserError: what is wrong with it.
    """
    if recipe.config.critic == "branch":
        _check_branch(recipe)
    name = recipe.config.value_model_name_or_path
    if name is None:
        return
    try:
        value_model = value_source(name, trust_remote_code=recipe.config.trust_remote_code)
        check_scores(value_model)
        known = value_model.load_tokenizer().get_vocab()
    except UserError as error:
        message = str(error).removeprefix("value_model_name_or_path: ")
        raise recipe.error("value_model_name_or_path", message) from error
    if known != text_tokenizer(tokenizer).get_vocab():
        raise recipe.error(
            "value_model_name_or_path",
            f"{name} has another vocabulary than {recipe.model_args.model_name_or_path}, whose tokens it is to read; "
            "name one with the same.",
        )


def _check_branch(recipe: Recipe) -> None:
    model_args, trusted = recipe.model_args, recipe.config.trust_remote_code
    name = str(model_args.model_name_or_path)
    config = load_config(name, revision=model_args.model_revision, trust_remote_code=trusted)
    try:
        branch_layers(build_on_meta(config), recipe.config.critic_layers)
    except UserError as error:
        key, _, message = str(error).partition(": ")
        raise recipe.error(key, message) from error


def build(inputs: StageInputs) -> Trainer:
    return PPOTrainer(**inputs.rollout_arguments())


STAGE = Stage(
    name="ppo",
    config_class=PPOConfig,
    build=build,
    reference=lambda trainer: trainer.ref_model,
    check=check,
    check_tokenizer=check_tokenizer,
    rules=(*ROLLOUT_RULES, Rule(("num_generations",), "1 or more", least=1, needed=True)),
    rewards="required",
    completion_length=lambda config: config.max_completion_length,
)
