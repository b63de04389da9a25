"""Group relative policy optimisation, with TRL's GRPOTrainer."""
