"""Pages that the package draws, questions about them, and the expert's way to each answer."""
