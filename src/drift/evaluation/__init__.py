"""Multi-turn evaluation on held-out tasks, with intervals."""
