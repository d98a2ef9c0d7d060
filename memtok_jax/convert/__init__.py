"""Weights of other implementations as parameters of ours, and back: one file for each source."""
