"""Evaluation alone: completions of held-out rows are drawn and measured, nothing is trained."""
