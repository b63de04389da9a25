"""The critic: a value model that is trained on correct and incorrect solutions, for weights of tokens and for PPO."""
