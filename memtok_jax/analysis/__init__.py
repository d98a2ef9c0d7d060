"""Analysis: figures of what a run did, and what the tokens of a vision model do (`registers`, one command)."""
