"""Pretraining: next-token training from random weights, with a tokenizer of the corpus' own."""
