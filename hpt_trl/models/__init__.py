"""From names to models: folders, Hub ids and built-in ones, adapters, weights that are spread over processes."""
