"""Handing a model on: its card, an adapter merged into its base, the hub."""
