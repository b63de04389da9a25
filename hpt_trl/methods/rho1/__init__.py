"""Rho-1: Selective Language Modeling on TRL's SFTTrainer."""
