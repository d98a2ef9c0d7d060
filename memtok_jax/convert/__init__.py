"""Parameters of other libraries as ours and back, one file for each source."""
