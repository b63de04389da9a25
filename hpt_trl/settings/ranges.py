"""Ranges that the values of keys must keep to, as plain data: they can be written to a file and read again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpt_trl.settings.values import did_you_mean


@dataclass(frozen=True)
class Rule:
    """What the values of some keys must satisfy; a value of None is asked only where one is needed.

    Attributes:
        keys: the keys.
        allowed: what is allowed, in words.
        least: least number that is allowed.
        above: a number that is not allowed itself, all above it are.
        most: greatest number that is allowed.
        below: a number that is not allowed itself, all below it are.
        whole: from 1 on only whole numbers are allowed.
        also: values that are allowed beside those in range.
        names: the only texts that are allowed; of a list one or more of them.
        fields: the only keys that a mapping may have.
        needed: None, which the field may take, is not allowed.
        most_of: another key, whose value is the greatest number that is allowed.
        below_of: another key, whose value is not allowed itself, all below it are.
    """

    keys: tuple[str, ...]
    allowed: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    whole: bool = False
    also: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    needed: bool = False
    most_of: str = ""
    below_of: str = ""

    @property
    def bound_by(self) -> str:
        """The other key on which the range depends; empty where it depends on none."""
        return self.most_of or self.below_of

    def holds(self, value: Any) -> bool:
        """Whether a value is in range, as far as that depends on no other key; of a list all that it has."""
        if value in self.also:
            return True
        if isinstance(value, list) and not self.names:
            return bool(value) and all(map(self.holds, value))
        if self.fields:
            return not isinstance(value, dict) or set(value) <= set(self.fields)
        if self.names:
            return bool(value) and set(value) <= set(self.names) if isinstance(value, list) else value in self.names
        # A field may take a number or a text; only `also` has texts in range.
        return not isinstance(value, str) and (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
            and (not self.whole or value < 1 or value == int(value))
        )


def at_least(least: float, *keys: str) -> Rule:
    return Rule(keys, f"{least} or more", least=least)


def above(bound: float, *keys: str) -> Rule:
    return Rule(keys, f"above {bound}", above=bound)


def share(*keys: str, zero: bool = True, one: bool = True) -> Rule:
    return Rule(
        keys,
        f"{'from' if zero else 'above'} 0 {'to' if one else 'to below'} 1",
        least=0 if zero else None,
        above=None if zero else 0,
        most=1 if one else None,
        below=None if one else 1,
    )


def count_or_share(*keys: str) -> Rule:
    return Rule(keys, "a whole number of 1 or more, or a share between 0 and 1", above=0, whole=True)


def one_of(key: str, *names: str) -> Rule:
    return Rule((key,), ", ".join(names), names=names)


def rules_of(config_class: type) -> Iterator[Rule]:
    """Yields what a config and those that it is made of declare as `RULES`; the nearest come last, and stand above."""
    for kind in reversed(config_class.__mro__):
        yield from kind.__dict__.get("RULES", ())


def keep_to_rules(config: object) -> None:
    """Holds a config that was made from Python to the ranges that a recipe is held to before it is made.

    Raises:
        ValueError: the key, its value and what is allowed.
    """
    for rule in rules_of(type(config)):
        for key in rule.keys:
            value = getattr(config, key)
            if wrong := problem(rule, value):
                raise ValueError(f"`{key}` is {value!r}; {wrong.removeprefix('is not allowed; ')}")
            if rule.bound_by and (wrong := contradiction(rule, value, getattr(config, rule.bound_by))):
                raise ValueError(f"`{key}` is {value!r} {wrong}")


def problem(rule: Rule, value: Any) -> str | None:
    """Returns what to say after a value that is out of range, or None where it is in range."""
    if not rule.needed if value is None else rule.holds(value):
        return None
    given, names = str(value)[:200], rule.names
    if isinstance(value, dict):
        given, names = next(str(key) for key in value if key not in rule.fields), rule.fields
    return f"is not allowed; allowed: {rule.allowed}.{did_you_mean(given, names)}"


def contradiction(rule: Rule, value: Any, bound: Any) -> str | None:
    """Returns what to say after a value that the value of `rule.bound_by` does not allow, or None where it does."""
    if value is None or bound is None:
        return None
    number = max(value) if isinstance(value, list) else value
    if number <= bound if rule.most_of else number < bound:
        return None
    return f"with `{rule.bound_by}` {bound}; allowed: {rule.allowed}."
