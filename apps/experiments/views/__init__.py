"""Pages of experiments, metrics and kept results."""
