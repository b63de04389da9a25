"""One run of a recipe: preparation, training, evaluation, and the files that stay."""
