"""Rollouts of several turns: a model acts, an environment shows what came of it, until one of them ends it."""
