"""`generate` without what a batch does not need: one pass per prompt, and no row after its end."""
