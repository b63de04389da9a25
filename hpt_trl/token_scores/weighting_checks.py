"""Which value models weights can be made of."""

import logging

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.models.folders import is_value_model
from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.value_model import read_head_settings
from hpt_trl.token_scores.values import check_value_model
from hpt_trl.token_scores.weighting_config import TokenWeightingConfig

logger = logging.getLogger(__name__)


def check_weighting(
    config: TokenWeightingConfig, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, *, model: str | None
) -> None:
    """Refuse a value model that gives no weights; no weights are loaded. Arguments as of `check_value_model`.

    A value is compared with an outcome or a number only where it is on that scale; of others it is said in a warning.

    Raises:
        UserError: what `check_value_model` refuses. The message starts with the key.
    """
    if not config.needs_values:
        return
    check_value_model(config, tokenizer, model=model)
    name = value_model_folder(str(config.value_model_name_or_path))
    compared = {
        "td_terminal": config.td_terminal == "reward",
        "td_first_baseline": config.td_first_baseline is not None,
    }
    objective = read_head_settings(name).objective if is_value_model(name) else None
    if objective != "regression":
        how = f"`objective: {objective}`" if objective is not None else "a reward model's scores"
        for key in (key for key, asked in compared.items() if asked):
            logger.warning(
                "%s: %s compares values with a number, but those of %s are known up to a shift only (%s); with "
                "`objective: regression` a critic's values are chances of success.",
                key,
                getattr(config, key),
                name,
                how,
            )
