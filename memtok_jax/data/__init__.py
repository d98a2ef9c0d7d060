"""Data: sources and task generators that yield host arrays; nothing here is compiled."""
