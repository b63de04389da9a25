"""What a model can do: its completions of held-out prompts, and what is measured of them."""
