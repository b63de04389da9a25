"""Weighted multi-token prediction: SFT that predicts n tokens ahead, each token of the loss with a weight."""
