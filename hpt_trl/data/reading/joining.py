"""Tables laid end to end, whose columns may differ."""

import pyarrow as pa
from datasets import Dataset, Value, concatenate_datasets

from hpt_trl.data.objects import arrow_column, column_values
from hpt_trl.errors import UserError


def joined(parts: list[Dataset], names: list[str]) -> Dataset:
    """The rows of all parts; a column that a part lacks is None there, and objects keep the keys that they have.

    Args:
        names: of the parts, for messages.

    Raises:
        UserError: a column of values that have no type in common.
    """
    if len(parts) == 1:
        return parts[0]
    for name in dict.fromkeys(name for part in parts for name in part.column_names):
        having = [place for place, part in enumerate(parts) if name in part.column_names]
        kinds = [parts[place].features[name] for place in having]
        known = [kind for kind in kinds if kind != Value("null")]
        if all(kind == known[0] for kind in known):
            continue
        values = [column_values(parts[place], name) for place in having]
        try:
            column = arrow_column([value for part in values for value in part])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            other = next(kind for kind in known if kind != known[0])
            raise UserError(
                f"the column `{name:.60}` is {_said(known[0])} in {names[having[kinds.index(known[0])]]}, but "
                f"{_said(other)} in {names[having[kinds.index(other)]]}; write the same type in both."
            ) from error
        start = 0
        for place, part in zip(having, values, strict=True):
            order = parts[place].column_names
            parts[place] = parts[place].remove_columns(name).add_column(name, column[start : start + len(part)])
            parts[place] = parts[place].select_columns(order)
            start += len(part)
    return concatenate_datasets(parts)


def _said(kind: object) -> str:
    return str(kind.dtype) if isinstance(kind, Value) else f"{kind!r:.80}"
