"""Reward models: trained on comparisons with TRL's RewardTrainer, and used as rewards."""
