"""What nobody would write: recipes, rows, files and words drawn by hypothesis. Only a `UserError` may come of them.

`make fuzz` draws many thousands anew, `make test` a few, always the same. What was found lies in `corpus/`, and is
tried each time.
"""
