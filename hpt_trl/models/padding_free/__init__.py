"""Forward passes that compute no padding, and what rows share only once.

packing            a padded batch as one row of tokens
attention          attention in which a row of that kind sees itself and what it shares
trunks             a trunk that takes packed rows, and tries the first ones in both ways
language_models    a language model under TRL's fused head that takes a padded batch and computes it so
wrapping           a forward pass within another
settings           the key that pads
"""
