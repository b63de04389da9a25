"""What is kept of a batch's first sequence."""

import torch

from hpt_trl.token_scores.samples import FirstSequence


def sequence(*, position_ids: list[int] | None, learnt: list[int]) -> FirstSequence:
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "labels": torch.tensor([[5, 6, 7, 8, 9]])}
    batch |= {} if position_ids is None else {"position_ids": torch.tensor([position_ids])}
    return FirstSequence(batch, torch.tensor([learnt]).bool())


def test_a_row_ends_with_its_last_learnt_token():
    first = sequence(position_ids=None, learnt=[0, 0, 1, 1, 0])
    first.note("loss", torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    first.note("value", torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), torch.tensor([[0, 1, 1, 1, 1]]).bool())
    ids, figures = first.sample(weighting="verifiable", value=None, weight=None)
    assert ids == [5, 6, 7, 8]
    assert figures == {
        "weighting": "verifiable",
        "weight": None,
        "loss": [None, None, 3.0, 4.0],
        "value": [None, 2.0, 3.0, 4.0],
    }


def test_of_a_padding_free_row_the_first_document_alone():
    first = sequence(position_ids=[0, 1, 2, 0, 1], learnt=[0, 1, 1, 0, 1])
    first.note("loss", torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert first.sample() == ([5, 6, 7], {"loss": [None, 2.0, 3.0]})
    assert sequence(position_ids=[0, 1, 2, 0, 1], learnt=[0, 0, 0, 0, 1]).sample() is None


def test_what_is_noted_first_stays():
    """A later micro-batch of the step is another one's."""
    first = sequence(position_ids=None, learnt=[0, 1, 0, 0, 0])
    for loss in (1.0, 2.0):
        first.note("loss", torch.full((1, 5), loss))
    assert first.sample() == ([5, 6], {"loss": [None, 1.0]})
