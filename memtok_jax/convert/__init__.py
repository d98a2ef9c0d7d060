"""Weights of other implementations <-> our parameters: one file for each source."""

from memtok_jax.convert.vit import VitCheckpoint, load_vit, save_vit

__all__ = ["VitCheckpoint", "load_vit", "save_vit"]
