"""Returns and weights: arrays in, arrays out, no files."""
