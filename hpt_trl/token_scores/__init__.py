"""What a frozen model says of each token of the rows, kept on disk, and how tokens are selected by it."""
