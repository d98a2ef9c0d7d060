"""Models: they know the signature of a memory, never which mechanism it is."""
