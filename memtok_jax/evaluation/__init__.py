"""Evaluation: one file per suite; each yields (name, value) pairs."""
