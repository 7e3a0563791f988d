"""Environments of other libraries, played under this project's protocol."""
