"""Weights of other implementations as parameters of ours, and back: one file for each source."""

from memtok_jax.convert.vit import VitCheckpoint, load_vit, save_vit

__all__ = ["VitCheckpoint", "load_vit", "save_vit"]
