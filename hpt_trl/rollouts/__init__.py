"""What the trainers on rollouts (GRPO, HPT, PPO) share: a base with TRL's faults mended, and rows without padding."""
