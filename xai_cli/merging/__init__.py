"""Fisher information of classifiers, and merges of their checkpoints by it."""
