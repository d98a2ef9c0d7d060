"""Recurrence, masks and positions equal recurrent-memory-transformer-pytorch 0.7.0 over three segments, in values and gradients.

`tests/data/rmt_pytorch_parity.npz` (made by `peers_export/export_rmt_pytorch.py`, float64) holds its network and its wrapper with
scrambled weights, mask of the paper. Its block is not that of our decoder: RMSNorm, a null key and value in each head, values mixed
with those of the first layer, gated exact GELU, no biases. So `peer_layers` below is that block, and ours are around it

    memory/rmt.py             read, split and write, from a first memory of zeros; rows that a padded segment leaves
    models/borders.py               `visible_slots` of the form "paper", padding in two segments, a short last segment
    training/backpropagation.py     where "every:2" cuts

Its learned vectors of read and write rows are rows of a table of positions. Run "added" is then the paper's [m ; x ; m], as
`read` makes it, and nothing is cut; in run "fixed", its default, the write rows hold their learned vectors alone (m is taken out of
them here), and the gradient is cut after two segments. Not compared: its cache, which its wrapper never passes on; the causal mask
(`memory_not_causal=False`), for which 0.7.0 raises without flash attention. One test runs it now, with other numbers:

    MEMTOK_PEER_RMT_PYTHON=/path/to/python pytest tests/test_peer_rmt_pytorch.py
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit
from peers import export

from memtok_jax.memory import rmt as memory
from memtok_jax.models import borders
from memtok_jax.models.call import Call
from memtok_jax.training import backpropagation

STORED = Path(__file__).resolve().parent / "data" / "rmt_pytorch_parity.npz"


# ------------------------------------------------------------------------------------------------------- the peer's block

def rms(x, weight):
    """Root mean square over the last axis, with torch's epsilon of float64."""
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + np.finfo(np.float64).eps) * weight[None, None]


def attention(p, x, visible, first_v, heads):
    """(branch [B, E, D], values [B, H, E, K] of this layer before they are mixed with the first layer's)."""
    x = rms(x, p["norm.weight"])
    by_head = lambda y: y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
    q, k, v = (by_head(x @ w.T) for w in (p["to_q.weight"], *jnp.split(p["to_kv.weight"], 2)))
    own = v
    if first_v is not None:
        mix = jax.nn.sigmoid(x @ p["learned_value_residual_mix.0.weight"].T).swapaxes(1, 2)[..., None]
        v = v + mix * (first_v - v)
    null = [jnp.broadcast_to(kv[None, :, None], (len(x), heads, 1, kv.shape[-1])) for kv in p["null_kv"]]
    k, v = (jnp.concatenate([a, b], axis=2) for a, b in zip(null, (k, v), strict=True))
    score = jnp.einsum("bhik,bhjk->bhij", q, k) * q.shape[-1] ** -0.5
    visible = jnp.pad(visible, ((0, 0), (0, 0), (1, 0)), constant_values=True)[:, None]
    y = jnp.einsum("bhij,bhjk->bihk", jax.nn.softmax(jnp.where(visible, score, -jnp.inf), axis=-1), v)
    return y.reshape(x.shape) @ p["to_out.weight"].T, own


def feed_forward(p, x):
    """W_2 (a gelu(b)), [a ; b] = W_1 rms(x)."""
    a, b = jnp.split(rms(x, p["0.weight"]) @ p["1.weight"].T, 2, axis=-1)
    return (a * jax.nn.gelu(b, approximate=False)) @ p["4.weight"].T


def part(params, prefix):
    """Parameters below a name."""
    return {name.removeprefix(prefix): w for name, w in params.items() if name.startswith(prefix)}


def peer_layers(params, x, visible, sizes):
    """Rows x[B, E, D] with their positions -> hidden states after the last norm."""
    first_v = None
    for l in range(sizes["depth"]):
        y, own = attention(part(params, f"layers.{l}.0.branch."), x, visible, first_v, sizes["heads"])
        first_v, x = own if l == 0 else first_v, x + y
        x = x + feed_forward(part(params, f"layers.{l}.1.branch."), x)
    return rms(x, params["norm.weight"])


# ------------------------------------------------------------------------------------------------------ ours around it

def placed(m, t, length, form):
    """Places of [m ; x ; m] with padding behind x, and what each sees: (i32[B, E], bool[B, E, E]).

    The model feeds the three parts one after the other, and padding takes no place.
    """
    sees = {"paper": "memory", "causal": "past"}[form]
    calls = (Call(length=jnp.full_like(length, m), slot=jnp.zeros_like(length), head=m, sees=sees),
             Call(length=length, slot=jnp.full_like(length, m)),
             Call(length=jnp.full_like(length, m), slot=m + length, tail=m, sees=sees))
    parts = list(zip(calls, (m, t, m), strict=True))
    by_place = jnp.concatenate([borders.visible_slots(call, n, m + t + m) for call, n in parts], axis=1)
    place = jnp.concatenate([call.slot[:, None] + jnp.arange(n)[None] for call, n in parts], axis=1)
    column = np.arange(m + t + m)[None]
    real = (column < m + length[:, None]) | (column >= m + t)
    return place, jnp.take_along_axis(by_place, place[:, None], axis=2) & real[:, None]


def segment(params, state, ids, length, sizes, fixed, form="paper"):
    """One segment: (logits [B, T, V], state)."""
    m, t, full = sizes["num_memory_tokens"], ids.shape[1], sizes["seq_len"]
    cfg = memory.RmtTokensConfig(sizes["dim"], m)
    x = memory.read({}, state, params["token_emb.weight"][ids], cfg)
    x = x.at[:, m + t:].set(0) if fixed else x
    # The table: read rows, tokens of a full segment, write rows, whose number rather than position picks the vector.
    table = jnp.concatenate([params[name] for name in ("read_memory_emb", "pos_emb.weight", "memory_tokens")])
    place, visible = placed(m, t, length, form)
    entry = jnp.where(np.arange(m + t + m)[None] < m + t, place, place + full - length[:, None])
    h = peer_layers(params, x + table[entry], visible, sizes)
    h, written = memory.split(h, cfg)
    logits = h @ params["to_logits.weight"].T + params["to_logits.bias"][None, None]
    return logits, memory.write({}, state, written, cfg, length > 0)


def stream(params, stored, settings, name, form="paper"):
    """(the weighed sum, (logits, last memory)) of one run."""
    sizes, lengths = settings["sizes"], np.array(settings["lengths"])
    state = memory.RmtTokensState(jnp.zeros((len(lengths), sizes["num_memory_tokens"], sizes["dim"])))
    parts, first = [], 0
    for n, cut in enumerate(backpropagation.cuts(settings["cut"][name], lengths.shape[1])):
        ids = jnp.asarray(stored["ids"][:, first:first + lengths[0, n]])
        state = jax.tree.map(lambda m, cut=cut: jnp.where(cut, jax.lax.stop_gradient(m), m), state)
        logits, state = segment(params, state, ids, jnp.asarray(lengths[:, n]), sizes, name == "fixed", form)
        real = jnp.arange(ids.shape[1])[None] < lengths[:, n:n + 1]
        parts, first = [*parts, jnp.where(real[..., None], logits, 0)], first + ids.shape[1]
    logits = jnp.concatenate(parts, axis=1)
    return (logits * stored["r"]).sum() + (state.tokens * stored["s"]).sum(), (logits, state.tokens)


def opened(path: Path):
    """(arrays, settings, parameters)."""
    stored = np.load(path)
    params = {key.removeprefix("param/"): jnp.asarray(stored[key]) for key in stored.files if key.startswith("param/")}
    return stored, json.loads(str(stored["settings"])), params


def check_equal(path: Path, name: str) -> None:
    """Logits, last memory and the gradient of every parameter."""
    with jax.enable_x64(True):
        stored, settings, params = opened(path)
        run = partial(stream, stored=stored, settings=settings, name=name)
        gradient, (logits, tokens) = jit(jax.grad(run, has_aux=True))(params)
        np.testing.assert_allclose(logits, stored[f"{name}/logits"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(tokens, stored[f"{name}/memory"], rtol=0, atol=1e-12)
        for key, found in gradient.items():
            want = stored[f"{name}/gradient/{key}"]
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-11 * np.abs(want).max(), err_msg=key)
            assert np.abs(want).max() > 0.1, "the case tests nothing"


@pytest.mark.parametrize("name", ["added", "fixed"])
def test_equals_stored_case(name):
    check_equal(STORED, name)


def test_the_case_tells_masks_apart():
    """With the causal mask instead of the paper's the logits are others, from the first segment on."""
    with jax.enable_x64(True):
        stored, settings, params = opened(STORED)
        run = partial(stream, stored=stored, settings=settings, name="added", form="causal")
        logits = jit(run)(params)[1][0]
        assert np.abs(logits - stored["added/logits"])[:, :5].max() > 0.1


def test_equals_the_peer_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_rmt_pytorch", path, "--seed=7", variable="MEMTOK_PEER_RMT_PYTHON",
           imports=("torch", "recurrent_memory_transformer_pytorch"),
           needs="torch and recurrent-memory-transformer-pytorch==0.7.0")
    for name in ("added", "fixed"):
        check_equal(path, name)
