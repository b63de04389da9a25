"""What an evaluation has measured, for reading."""

from typing import Any

# What an evaluation measures -> how it is shown.
_SHARES = ("pass@", "avg@", "maj@", "win_rate", "recall@", "ndcg@")
_NUMBERS = ("perplexity", "loss", "bits_per_byte")


def measure_lines(measured: dict[str, Any]) -> list[str]:
    """What an evaluation has measured, a line each, with its 95 % interval."""
    lines = []
    for name, value in measured.items():
        if value is None or name.endswith("_interval") or not name.startswith((*_SHARES, *_NUMBERS)):
            continue
        number = "{:.1%}" if name.startswith(_SHARES) else "{:.4g}"
        line = f"{name + ':':<14} {number.format(value)}"
        if (interval := measured.get(f"{name}_interval")) is not None:
            line += f"  (95 % interval {number.format(interval[0])} to {number.format(interval[1])})"
        lines.append(line)
    if measured.get("rewards") and len(measured["rewards"]) > 1:
        means = ", ".join(f"{name} {value:.4g}" for name, value in measured["rewards"].items() if value is not None)
        lines.append(f"{'mean rewards:':<14} {means}")
    if measured.get("unscored"):
        lines.append(f"{'unscored:':<14} {measured['unscored']:,} completions have no reward")
    if (undecided := undecided_line(measured)) is not None:
        lines.append(f"{'undecided:':<14} {undecided}")
    lines += environment_lines(measured)
    if "n" in measured:
        lines.append(
            f"{'completions:':<14} {measured['rows']:,} rows x {measured['n']}, mean length "
            f"{measured['mean_length']:.0f} tokens, {measured['truncated']:.1%} cut at the limit"
        )
    elif "rows" in measured:
        lines.append(f"{'rows:':<14} {measured['rows']:,}, {measured['scored_tokens']:,} tokens scored")
    return lines


def undecided_line(measured: dict[str, Any]) -> str | None:
    """Says how many completions count as not solved without having been judged; None where there are none."""
    count = measured.get("undecided")
    if not count:
        return None
    return f"{count:,} completions have no value of {measured['success_reward']}, and count as not solved"


def environment_lines(measured: dict[str, Any]) -> list[str]:
    """What an environment has measured of rollouts, and why they ended; nothing without one."""
    if "environment" not in measured:
        return []
    means = [f"{name} {value:.3g}" for name, value in measured["environment"].items() if value is not None]
    ends = [f"{name} {count:,}" for name, count in measured["ended"].items()]
    return [f"{'environment:':<14} {', '.join(means)}", f"{'ended by:':<14} {', '.join(ends)}"]
