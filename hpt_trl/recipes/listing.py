"""What `hpt-trl list` shows: the recipes that come with the package."""

from hpt_trl.errors import UserError
from hpt_trl.recipes.bundled import RecipeSummary, bundled_recipes, recipes_folder, summarize
from hpt_trl.terminal import Column, table

_COLUMNS = (
    Column("RECIPE", whole=True),
    Column("STAGE", whole=True),
    Column("MODEL", below=True),
    Column("DATA", below=True),
    Column("HARDWARE", below=True),
)
# What a summary has where a recipe does not say.
_NOTHING = "-"


def recipe_table() -> str:
    """Return the bundled recipes as a table: name, stage, model, data, hardware."""
    return table(_COLUMNS, _summaries())


def recipe_records() -> list[dict[str, str | None]]:
    """Return the bundled recipes with the same as values; None where a recipe does not say."""
    records = [summary._asdict() for summary in _summaries()]
    return [{key: None if value == _NOTHING else value for key, value in record.items()} for record in records]


def _summaries() -> list[RecipeSummary]:
    rows = [summarize(path) for path in bundled_recipes()]
    if not rows:
        raise UserError(f"there are no recipes in {recipes_folder()}; the installation is incomplete.")
    return rows
