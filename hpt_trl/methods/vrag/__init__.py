"""Visual retrieval (VRAG, arXiv 2505.22019): a model searches page images, looks closer and answers."""
