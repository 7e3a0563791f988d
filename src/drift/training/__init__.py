"""Weighted fine-tuning on recorded conversations."""
