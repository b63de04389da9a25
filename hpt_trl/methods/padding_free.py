"""Trainers on rows that compute no padding: their configs, and which parts of a model take rows without it."""

from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, RewardConfig, SFTConfig

from hpt_trl.models.adapters import base_of
from hpt_trl.models.padding_free.language_models import pad_no_more
from hpt_trl.models.padding_free.settings import PaddingFree, log_padding, pads_no_more
from hpt_trl.models.padding_free.trunks import take_packed_rows


@dataclass
class PaddingFreeSFTConfig(PaddingFree, SFTConfig):  # type: ignore[misc]
    """`trl.SFTConfig`; rows are computed without padding by default."""


@dataclass
class PaddingFreeDPOConfig(PaddingFree, DPOConfig):  # type: ignore[misc]
    """`trl.DPOConfig`; rows are computed without padding by default."""


@dataclass
class PaddingFreeRewardConfig(PaddingFree, RewardConfig):
    """`trl.RewardConfig`; rows are computed without padding by default."""


def compute_without_padding(trainer: Any, *models: Any) -> None:
    """Have language models under TRL's fused head compute a trainer's rows without padding, where its config asks.

    Args:
        models: before they are wrapped for several processes; None is none.
    """
    if _asks(trainer):
        for model in models:
            if model is not None:
                pad_no_more(trainer.accelerator.unwrap_model(model))


def read_without_padding(trainer: Any, model: Any) -> None:
    """The same for a model that gives numbers, whose trunk reads the rows.

    Args:
        model: a sequence classifier, or the trunk of a value model.
    """
    if _asks(trainer):
        take_packed_rows(base_of(model).base_model)


def _asks(trainer: Any) -> bool:
    log_padding(trainer.args)
    # A sequence or weights that are spread over processes are not read row by row.
    return pads_no_more(trainer.args) and trainer.accelerator.parallelism_config is None
