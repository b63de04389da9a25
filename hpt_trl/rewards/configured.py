"""Rewards that have recipe keys of their own."""

from abc import ABC, abstractmethod
from typing import Self

from hpt_trl.rewards.arguments import RewardArguments


class ConfiguredReward(ABC):
    """A reward that is made anew for a recipe, with its keys."""

    @abstractmethod
    def configured(self, arguments: RewardArguments) -> Self:
        """Returns the same reward with a recipe's keys.

        Raises:
            UserError: with these keys it cannot be given.
        """
