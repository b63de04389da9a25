"""What nobody would write: recipes, pipelines, rows, files and words drawn by hypothesis. Only a `UserError` may come.

`make fuzz` draws many thousands anew (`campaign.py`), `make test` a few, always the same. What was found lies in
`corpus/`, and is tried each time.
"""
