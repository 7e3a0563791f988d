"""What maintainers of drift run, and its users don't need."""
