"""Ranges that the values of keys must keep to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpt_trl.settings.values import did_you_mean


@dataclass(frozen=True)
class Rule:
    """What the values of some keys must satisfy; a value of None (the default) is never asked."""

    keys: tuple[str, ...]
    holds: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()


def at_least(least: float, *keys: str) -> Rule:
    return Rule(keys, lambda value: value >= least, f"{least} or more")


def above(bound: float, *keys: str) -> Rule:
    return Rule(keys, lambda value: value > bound, f"above {bound}")


def share(*keys: str, zero: bool = True, one: bool = True) -> Rule:
    def holds(value: float) -> bool:
        return (value >= 0 if zero else value > 0) and (value <= 1 if one else value < 1)

    return Rule(keys, holds, f"{'from' if zero else 'above'} 0 {'to' if one else 'to below'} 1")


def count_or_share(*keys: str) -> Rule:
    return Rule(
        keys,
        lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
        "a whole number of 1 or more, or a share between 0 and 1",
    )


def one_of(key: str, *names: str) -> Rule:
    return Rule((key,), lambda value: value in names, ", ".join(names), names)


def problem(rule: Rule, value: Any) -> str | None:
    """Returns what to say after a value that is out of range, or None where it is in range."""
    if value is None or rule.holds(value):
        return None
    return f"is not allowed; allowed: {rule.allowed}.{did_you_mean(str(value), rule.names)}"
