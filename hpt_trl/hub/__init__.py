"""The Hub: what of a run goes up, its card, the checks before and the push after a training."""
