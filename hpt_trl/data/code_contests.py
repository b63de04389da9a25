"""CodeContests' own form, one row per problem with lists of its solutions, laid out as one row per solution."""

import logging
from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from hpt_trl.data.objects import column_values
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.errors import UserError
from hpt_trl.settings.values import did_you_mean

logger = logging.getLogger(__name__)

# Column of a problem's solutions -> whether they are correct.
_SOLUTIONS = {"solutions": True, "incorrect_solutions": False}
_OF_PROBLEM = (ROW, "problem_id", "instruction", "input", "difficulty")


def one_row_per_solution(dataset: Dataset, source: str, languages: list[str] | None) -> Dataset:
    """Lays `solutions` and `incorrect_solutions` out as rows with `output`, `is_correct` and `language`.

    Solutions without text and problems without a statement are left out and counted in a warning. Rows that have an
    `output` of their own stay as they are. Each row keeps the number of its source row.

    Args:
        languages: the programming languages that are kept; None for all.

    Raises:
        UserError: solutions of another form, none with text, or none in the languages.
    """
    nested = "solutions" in dataset.column_names and "output" not in dataset.column_names
    if languages is None and not nested:
        return dataset
    if not nested and "language" not in dataset.column_names:
        raise UserError(
            f"{source} has no column `language`, by which `solution_languages` sorts; write, e.g. column_mapping: "
            "{language: <column>}, or drop the key."
        )
    laid_out = _lay_out(dataset, source, languages) if nested else _of_languages(dataset, languages or [])
    if languages is not None:
        found = set(map(_namer(laid_out.features["language"]), laid_out.unique("language")))
        absent = [name for name in languages if name not in found]
        if not found:
            known = sorted(set(_languages(dataset, source, nested)))
            raise UserError(
                f"solution_languages: {source} has no solution in {', '.join(languages)}; it has {', '.join(known)}."
                f"{did_you_mean(languages[0], known)}"
            )
        if absent:
            logger.warning("%s has no solution in %s (`solution_languages`).", source, ", ".join(absent))
    return laid_out


def _lay_out(dataset: Dataset, source: str, languages: list[str] | None) -> Dataset:
    problems = len(dataset)
    if "instruction" in dataset.column_names:
        # Rows of a data set on the Hub cannot be dropped by those who read it.
        texts = column_values(dataset, "instruction")
        dataset = dataset.select([place for place, text in enumerate(texts) if not _is_blank(text)])
    laid_out = _rows(dataset, source, languages)
    valid = laid_out.data.column("output").is_valid().to_numpy()
    if len(valid) and not valid.any():
        raise UserError(f"{source}: none of its {len(valid):,} solutions holds any text.")
    kept = laid_out if valid.all() else laid_out.select(valid.nonzero()[0])
    skipped = {
        "solutions without text": len(laid_out) - len(kept),
        "problems without an `instruction`": problems - len(dataset),
        "problems without a solution": len(dataset) - len(set(kept[ROW])),
    }
    if any(skipped.values()):
        said = ", ".join(f"{what} ({count:,})" for what, count in skipped.items() if count)
        logger.warning("%s has %d problems; left out are %s.", source, problems, said)
    return kept


def _is_blank(text: Any) -> bool:
    """Whether there is nothing; another type is left for the check of the rows to name."""
    return text is None or (isinstance(text, str) and not text.strip())


def _rows(dataset: Dataset, source: str, languages: list[str] | None) -> Dataset:
    """One row per solution; the `output` of a blank one is None."""
    kept = [name for name in _OF_PROBLEM if name in dataset.column_names]
    lists = [name for name in _SOLUTIONS if name in dataset.column_names]
    namers = {name: _namer(_language_feature(dataset.features[name])) for name in lists}
    features = {name: dataset.features[name] for name in kept}
    features |= {"output": Value("string"), "is_correct": Value("bool"), "language": Value("string")}

    def lay_out(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in features}
        for place, number in enumerate(batch[ROW]):
            for column in lists:
                for language, solution in _pairs(batch[column][place], column, where(source, number)):
                    name = namers[column](language)
                    if languages is not None and name not in languages:
                        continue
                    for key in kept:
                        rows[key].append(batch[key][place])
                    rows["output"].append(None if _is_blank(solution) else solution)
                    rows["is_correct"].append(_SOLUTIONS[column])
                    rows["language"].append(name)
        return rows

    # The tests of a problem, left out here, are many times as large as its solutions.
    return dataset.select_columns([*kept, *lists]).map(
        lay_out,
        batched=True,
        batch_size=20,
        remove_columns=[*kept, *lists],
        features=Features(features),
        desc="Laying out solutions",
    )


def _of_languages(dataset: Dataset, languages: list[str]) -> Dataset:
    name_of = _namer(dataset.features["language"])
    return dataset.select([place for place, value in enumerate(dataset["language"]) if name_of(value) in languages])


def _languages(dataset: Dataset, source: str, nested: bool) -> Iterator[str]:
    columns = [name for name in _SOLUTIONS if name in dataset.column_names] if nested else ["language"]
    for column in columns:
        if not nested:
            yield from map(_namer(dataset.features[column]), dataset.unique(column))
            continue
        name_of = _namer(_language_feature(dataset.features[column]))
        for number, value in zip(dataset[ROW], dataset[column], strict=True):
            yield from (name_of(language) for language, _ in _pairs(value, column, where(source, number)))


def _pairs(value: Any, column: str, place: str) -> Iterator[tuple[Any, Any]]:
    """Language and text of each solution in a list of structs, or in a struct of lists."""
    if value is None:
        return
    try:
        if isinstance(value, dict):
            texts = value["solution"]
            yield from zip(value.get("language") or [None] * len(texts), texts, strict=True)
        else:
            yield from ((entry.get("language"), entry["solution"]) for entry in value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place}: `{column}` is {value!r:.60}; write {{language: [...], solution: [...]}}, two lists of one "
            "length, or a column `output` with one solution per row."
        ) from error


def _language_feature(feature: Any) -> Any:
    """The type of the languages inside a column of solutions."""
    fields = feature.feature if isinstance(feature, List) else feature
    language = fields.get("language") if isinstance(fields, dict) else None
    return language.feature if isinstance(language, List) else language


def _namer(feature: Any) -> Any:
    """What turns a stored language into its name."""
    return (lambda value: feature.names[value]) if isinstance(feature, ClassLabel) else str
