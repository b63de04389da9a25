"""Forward passes that compute no padding, and what rows share only once.

packing      a padded batch as one row of tokens, and values of it spread over the batch again
attention    attention in which a row of that kind sees itself and what it shares
forwards     a model's forward pass that takes a padded batch and computes it so
trying       whether a model finds the same in both ways
"""
