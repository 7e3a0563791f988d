"""The report: one self-contained page made from artifacts alone."""
