"""What is told before a run: the facts of `hpt-trl check`, memory, what recipes need, what is installed."""
