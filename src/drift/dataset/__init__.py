"""Data sets of trajectories, and the weights beside them."""
