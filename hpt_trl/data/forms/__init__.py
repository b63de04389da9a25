"""How files have their rows, and how these become the columns that a stage reads."""
