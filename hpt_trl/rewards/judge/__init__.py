"""A model behind an OpenAI-compatible service that says whether an answer is right."""
