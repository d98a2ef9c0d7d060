"""Analysis: figures of what a run did."""
