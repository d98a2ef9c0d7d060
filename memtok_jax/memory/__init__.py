"""The mechanisms of memory: one file (or folder) each, all with the signature of `docs/architecture.md`."""
