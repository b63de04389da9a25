"""Search over pages: how good a ranking is."""
