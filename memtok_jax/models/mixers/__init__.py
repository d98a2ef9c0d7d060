"""Mixers: how a block uses attention and memory.

Each file is one use, with the signature of every memory (`specs`, `state_specs`, `init_state`, `apply`, see
`docs/architecture.md`) and one function more:

    prefix(params, x_MD, cfg) -> (y_MD, prefix)

which runs the learned prefix tokens through the layer. Their keys and values depend on parameters alone and stand in the
`prefix` field of every mixer's state. `apply` takes the layer's normalised input u[B, T, D] and returns the
residual branch. `run` also returns statistics of the memory.
"""

from memtok_jax.models.mixers import attention, lmm, mac, mag

MIXERS = {"attention": attention, "lmm": lmm, "mac": mac, "mag": mag}
