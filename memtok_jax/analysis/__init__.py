"""Analysis: figures of a run, the tokens of a vision model (`registers` is a command), attention in a language model (`text`)."""
