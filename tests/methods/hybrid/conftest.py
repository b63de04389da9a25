"""What the tests of the hybrid trainer start from."""

import pytest

from tests.helpers.rollouts import FixedHPT, start_weights, train


@pytest.fixture(scope="module")
def start(tiny_model_path):
    return start_weights(tiny_model_path)


@pytest.fixture
def run(tiny_model_path, tmp_path):
    """Trains one step (by default) on fixed rollouts; returns the trainer."""

    def run(trainer_class=FixedHPT, **settings):
        return train(trainer_class, tiny_model_path, tmp_path, **settings)

    return run
