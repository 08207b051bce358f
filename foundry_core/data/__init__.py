"""From documents to batches: token file, rows, order, batches, collators, and the preparation of an experiment."""
