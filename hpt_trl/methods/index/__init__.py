"""A search index of pages, built by a recipe: nothing is trained."""
