"""Floating-point operations of the neural-memory layer, counted by hand from the equations.

The compiler's own count is no help: it counts the body of a loop once. Only matrix products are counted. P is the
number of fast matrix weights of a head, P1 those of its first matrix, C the chunk. Forward, per chunk and head:

    2CP            inner forward pass of the keys
    2C(P - P1)     inner backward pass down to the first pre-activation
    6CP            read at the initial weights, the deviation and the surprise of the chunk start
    2C^2 sum(d_in + d_out)   read of what the chunk itself wrote (scores, then values)
    4CP            weights and surprise at the chunk's end
    2C^3           coefficients

and per token the projections of key, value, query, gate and output (2 D^2 each) and of the three gates (6DH).

The backward pass costs twice the forward pass, as for every product of two matrices that both need a gradient; so
forward and backward together count as 3. A backward pass that recomputes the forward pass once executes 4; the
recomputation is not counted as work done.
"""

from __future__ import annotations

FORWARD_AND_BACKWARD = 3


def layer_per_token(width: int, heads: int, chunk: int, expansion: int = 4) -> float:
    """Operations of one token's forward pass through one layer with the default memory of two matrices."""
    head_dim = width // heads
    hidden = expansion * head_dim
    first, weights = head_dim * hidden, 2 * head_dim * hidden
    sides = 2 * (head_dim + hidden)
    inner = (
        chunk * (2 * weights + 2 * (weights - first) + 6 * weights + 4 * weights) + 2 * chunk**2 * sides + 2 * chunk**3
    )
    return heads * inner / chunk + 5 * 2 * width**2 + 6 * width * heads
