"""Hold what all other folders use: configuration, labels, batches, errors, random numbers, ranks, the Ray session."""
