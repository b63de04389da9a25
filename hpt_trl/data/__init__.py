"""From a recipe's data keys to checked rows."""
