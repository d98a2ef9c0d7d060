"""Side-by-side measurements against other programs and against the machine's own limits; each is one command."""
