"""Direct preference optimisation on comparisons, with TRL's DPOTrainer."""
