"""Scores of completions: functions, reward models, the checker of answers, and programs run in a sandbox."""
