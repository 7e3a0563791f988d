"""Data sets of trajectories written for other trainers."""
