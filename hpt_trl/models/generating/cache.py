"""A cache of keys and values that is not copied whole for each new token."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Tokens that a layer makes room for at a time.
_ROOM = 64


class RoomyLayer(DynamicLayer):
    """`DynamicLayer` with room for tokens that are still to come; `keys` and `values` are views of what is filled."""

    _rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens, each (rows, heads, tokens, width), and returns those of all."""
        # Attention under autocast computes in its type anyway; here a key is cast once, and not for every later token.
        device = key_states.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if self._rooms is None:
            self._rooms = _room(key_states, length), _room(value_states, length)
        elif length > self._rooms[0].shape[-2]:
            self._rooms = _room(self._rooms[0], length), _room(self._rooms[1], length)
        keys, values = self._rooms
        keys[..., held:length, :], values[..., held:length, :] = key_states, value_states
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of these numbers, in this order; one may come several times."""
        if self._rooms is not None:
            length, (keys, values) = self.get_seq_length(), self._rooms
            self._rooms = keys[indices], values[indices]
            self.keys, self.values = (room[..., :length, :] for room in self._rooms)


def _room(states: Tensor, length: int) -> Tensor:
    room = states.new_empty(*states.shape[:-2], length + _ROOM, states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room


def roomy_cache(config: PretrainedConfig) -> DynamicCache | None:
    """An empty cache for a model whose rows can leave it.

    Args:
        config: the model's.

    Returns:
        The cache; None for a model that keeps something else than keys and values of its tokens (state-space layers).
    """
    cache = DynamicCache(config=config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
