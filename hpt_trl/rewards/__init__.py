"""Scores of completions: functions, reward models, and the checker of answers."""
