"""Ref-tuning: the fine-tuning of a reference model on correct solutions, for Rho-1 and its relatives."""
