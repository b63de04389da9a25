"""A recipe: its keys, the stage that it names, and what both come to on this machine."""
