"""Proximal Policy Optimization with a learned critic (arXiv 1707.06347), which TRL dropped after 1.12."""
