"""Heads that predict further tokens than the next, on any decoder-only language model (multi-token prediction).

Parallel heads (arXiv 2404.19737): head k reads the trunk at position t and predicts token t + k, head 1 is the model's
own last layer. The plain next-token model is therefore the model itself, in memory and on disk; the other heads lie in
a folder `future_heads` beside it.
"""
