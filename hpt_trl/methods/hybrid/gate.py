"""From the number of solved rollouts of a prompt to its coefficients: the gate of HPT and the tables of `soft`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

UNIFY_STRATEGIES = ("switch", "soft", "no")
OFFLINE_LOSS_TYPES = ("sft", "off_policy", "srft", "chord")

# Solved rollouts -> (on-policy, off-policy, SFT). The official code counts the demonstration among 8, so its keys
# 1 to 8 stand for 0 to 7 of 7 rollouts solved. Its three types differ in the off-policy column.
_ON = (0.0, 0.125, 0.25, 0.5, 1.0, 1.0, 1.0, 1.0)
_SFT = (1.0, 0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 0.0)
_OFF = {
    "type_0": (0.0, 0.5, 1.0, 0.5, 0.25, 0.125, 0.0, 0.0),
    "type_1": (1.0,) * 8,
    "type_2": (0.0,) * 8,
}
Table = list[tuple[float, tuple[float, float, float]]]
SOFT_TABLES: dict[str, Table] = {
    name: [(k / 7, (_ON[k], off[k], _SFT[k])) for k in range(8)] for name, off in _OFF.items()
} | {"on_off": [(0.0, (1.0, 1.0, 0.0))], "on_sft": [(0.0, (1.0, 0.0, 1.0))]}


def read_soft_table(table: dict | str | None) -> Table:
    """A table of `soft` as rows (solved share, (on, off, SFT coefficient)) in rising order.

    Args:
        table: A name in `SOFT_TABLES`, or a mapping from solved share to three coefficients.

    Raises:
        ValueError: an unknown name, a share outside 0 to 1, or coefficients that are not three numbers of 0 or more.
    """
    if not isinstance(table, dict):
        if table not in SOFT_TABLES:
            raise ValueError(
                f"`soft_table` is {table!r}; allowed: {', '.join(SOFT_TABLES)}, or a mapping such as "
                "{0: [0, 0, 1], 0.5: [0.5, 0.5, 0.125], 1: [1, 0, 0]}."
            )
        return SOFT_TABLES[table]
    rows: Table = []
    for share, coefficients in table.items():
        try:
            on, off, sft = (float(value) for value in coefficients)
            share = float(share)
        except (TypeError, ValueError):
            raise ValueError(
                f"`soft_table` maps {share!r} to {coefficients!r}; write a share between 0 and 1 and three numbers: "
                "[on-policy, off-policy, SFT]."
            ) from None
        if not 0 <= share <= 1 or min(on, off, sft) < 0:
            raise ValueError(
                f"`soft_table` maps {share} to {[on, off, sft]}; allowed: a share from 0 to 1, coefficients from 0."
            )
        rows.append((share, (on, off, sft)))
    if not rows:
        raise ValueError("`soft_table` is empty; write at least one row, e.g. {0: [0, 0, 1], 1: [1, 0, 0]}.")
    return sorted(rows)


def prompt_coefficients(
    solved: Float[Tensor, " prompts"],
    group_size: int,
    strategy: str,
    *,
    gate: int = 0,
    gate_off: int | None = None,
    soft_table: dict | str | None = "type_0",
) -> Float[Tensor, "prompts 3"]:
    """Coefficients (on-policy RL, off-policy RL, SFT) of each prompt.

    Args:
        solved: Number of solved rollouts of each prompt, 0 to `group_size`.
        strategy: `switch` (HPT eq. 10: P <= gamma -> SFT), `soft` (linear interpolation of the table in the solved
            share, so that one table serves every group size) or `no` (on-policy only).
        gate: `switch`: at most this many solved -> SFT.
        gate_off: `switch`: above the gate and at most this many solved -> off-policy RL.

    Raises:
        ValueError: an unknown strategy or table.
    """
    on_only, off_only, sft_only = solved.new_tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).unbind()
    if strategy == "no":
        return on_only.expand(len(solved), 3).clone()
    if strategy == "switch":
        coefficients = on_only.expand(len(solved), 3).clone()
        if gate_off is not None:
            coefficients[solved <= gate_off] = off_only
        coefficients[solved <= gate] = sft_only
        return coefficients
    if strategy == "soft":
        rows = read_soft_table(soft_table)
        shares = torch.tensor([share for share, _ in rows], dtype=torch.float64)
        values = torch.tensor([row for _, row in rows], dtype=torch.float64)
        share = (solved.double() / group_size).cpu()
        right = torch.searchsorted(shares, share).clamp(max=len(rows) - 1)
        left = (right - 1).clamp(min=0)
        width = (shares[right] - shares[left]).clamp(min=torch.finfo(torch.float64).tiny)
        weight = ((share - shares[left]) / width).clamp(0, 1).unsqueeze(1)
        return torch.lerp(values[left], values[right], weight).to(solved)
    raise ValueError(f"`unify_strategy` is {strategy!r}; allowed: {', '.join(UNIFY_STRATEGIES)}.")


def no_contrast(rewards: Float[Tensor, "prompts group"]) -> Bool[Tensor, " prompts"]:
    """Prompts whose scored rollouts all have the same reward, so that every group-relative advantage is zero.

    Equality of rewards, not of advantages: a mean of equal floats can differ from them in the last bit.
    """
    scored = ~rewards.isnan()
    high = torch.where(scored, rewards, -torch.inf).amax(1)
    low = torch.where(scored, rewards, torch.inf).amin(1)
    return high <= low
