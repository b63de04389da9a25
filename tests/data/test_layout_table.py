"""What the trainers really get of rows in people's layouts; what is trained was written by hand."""

import pytest

from hpt_trl.errors import UserError
from tests.data.layout_table import PAGE, cell, page, said, table

_HI = "<|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎"
_BRIEF = "<|im_start|>system⏎Be brief.<|im_end|>⏎"
_AND = "<|im_start|>user⏎And?<|im_end|>⏎<|im_start|>assistant⏎"


@pytest.mark.parametrize(
    "stage, layout, texts",
    [
        ("sft", "sharegpt", [f"{_BRIEF}{_HI}⟦Hello.<|im_end|>⏎⟧{_AND}⟦More.<|im_end|>⏎⟧"]),
        ("sft", "text", ["⟦Once it rained.<|im_end|>⟧"]),
        ("dpo", "hh-rlhf", [f"{_HI}Hello.<|im_end|>⏎{_AND}⟦{answer}<|im_end|>⏎⟧" for answer in ("More.", "No.")]),
        ("reward", "orca", [f"⟦{_BRIEF}{_HI}{answer}<|im_end|>⏎⟧" for answer in ("Hello.", "No.")]),
        ("grpo", "ultrachat", [f"{_HI}⟦a rollout⟧"]),
        ("hpt", "messages, as JSON text", [f"{_HI}Hello.<|im_end|>⏎{_AND}⟦More.<|im_end|>⟧"]),
        (
            "rho1",
            "dolly",
            [
                "<|im_start|>user⏎When?⏎⏎It was in May.<|im_end|>⏎<|im_start|>assistant⏎⟦In May.<|im_end|>⏎⟧",
            ],
        ),
    ],
)
def test_what_is_trained(stage, layout, texts, tiny_model_path, tmp_path):
    assert cell(stage, layout, tiny_model_path, tmp_path / "cell") == texts


@pytest.mark.parametrize(
    "stage, layout, message",
    [
        ("dpo", "KTO", "which are unpaired"),
        ("sft", "KTO, label false", "`label` is false"),
        ("pretrain", "alpaca", "from which this stage makes no documents"),
        ("hpt", "prompt alone", "has no column `completion`"),
    ],
)
def test_what_is_refused(stage, layout, message, tiny_model_path, tmp_path):
    with pytest.raises(UserError) as refused:
        cell(stage, layout, tiny_model_path, tmp_path / "cell")
    assert message in said(refused.value, tmp_path / "cell")


@pytest.mark.slow
def test_the_page_is_as_the_trainers_have_it(tmp_path):
    assert page(table(tmp_path)) == PAGE.read_text()
