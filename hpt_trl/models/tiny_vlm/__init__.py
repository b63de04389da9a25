"""A vision-language model of random weights, small enough to be trained on a CPU within minutes."""
