"""Supervised fine-tuning on demonstrations, with TRL's SFTTrainer."""
