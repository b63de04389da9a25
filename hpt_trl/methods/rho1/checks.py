"""Which reference models a selection can be compared with."""

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.errors import UserError
from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.token_scores.reference import MODEL_KEY, check_reference, is_trained_model


def check_selection(
    config: Rho1Config, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, *, model: str | None
) -> None:
    """Refuse a reference that gives no selection; no weights are loaded. Arguments as of `check_reference`.

    Raises:
        UserError: what `check_reference` refuses, or the trained model itself. The message starts with the key.
    """
    check_reference(config, tokenizer, model=model)
    if config.selection == "excess" and config.selection_warmup_steps == 0 and is_trained_model(config, model):
        raise UserError(
            f"{MODEL_KEY}: {config.reference_model_name_or_path} is the trained model itself: at the start no token's "
            "loss exceeds the reference's, and the selection is noise. Name a model that was tuned on good data "
            "(`stage: ref_tuning`), or train on all tokens first, e.g. `selection_warmup_steps: 100`."
        )
