"""Rollouts: conversations held and recorded."""
