"""Generators of tasks with a known answer: pure numpy functions of (settings, length, batch, seed).

Each file holds a frozen dataclass of settings and the functions
    vocabulary(cfg) -> int                          number of tokens
    symbols(cfg) -> tuple of str                    a readable name for each token
    check(cfg, sequence)                            raises DataError where the length cannot hold the task
    segment(cfg, sequence) -> int                   natural length of a segment: evidence and question are apart
    sample(cfg, sequence, batch, seed) -> Sample    seed: any non-negative integer
    baselines(cfg, sequence, window) -> dict        accuracy of chance, and of a perfect reader of `window` tokens
"""
