"""memtok_jax: working memory for Transformers, as pure functions with explicit state."""

__version__ = "0.1.0"
