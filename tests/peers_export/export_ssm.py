"""Write small cases of the Mamba, Jamba and Mamba-2 mixers of transformers, for tests/test_peer_ssm.py.

Runs in a Python with torch==2.13.0 and transformers==5.23.0:

    PEER_PYTHON tests/peers_export/export_ssm.py --output=tests/data/ssm_parity.npz

Each case is one mixer with random weights in float64 that reads rows of tokens in one full forward pass from an empty state: its
options (`settings`), its weights (`CASE/param/NAME`), tokens (`CASE/x`), outputs (`CASE/y`), the weights of the sum of all
outputs (`CASE/weights`) and the gradients of that sum (`CASE/grad/x`, `CASE/grad/NAME`). Never a cache: continued with more than
one token, those of Mamba and Jamba start the scan from zero.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch
from torch_cases import arrays_of, keep_float64, write
from transformers import JambaConfig, Mamba2Config, MambaConfig
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

WIDTH = 12
JAMBA = JambaConfig(vocab_size=8, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=2, num_experts=1, num_experts_per_tok=1, mamba_d_state=5, mamba_d_conv=4, mamba_expand=2,
                    mamba_dt_rank=3)
MAMBA = MambaConfig(vocab_size=8, hidden_size=WIDTH, state_size=5, num_hidden_layers=1, conv_kernel=4, expand=2, time_step_rank=3)
MAMBA2 = {"vocab_size": 8, "hidden_size": WIDTH, "state_size": 5, "num_hidden_layers": 1, "conv_kernel": 3, "expand": 2,
          "num_heads": 6, "head_dim": 4, "chunk_size": 4}
CASES = {
    "mamba": (MambaMixer, MAMBA, {"state": 5, "conv": 4, "rank": 3}),
    "jamba": (JambaMambaMixer, JAMBA, {"state": 5, "conv": 4, "rank": 3, "norms": True}),
    "mamba2": (Mamba2Mixer, Mamba2Config(n_groups=1, **MAMBA2), {"state": 5, "conv": 3, "head_dim": 4, "groups": 1}),
    "mamba2_groups": (Mamba2Mixer, Mamba2Config(n_groups=3, **MAMBA2), {"state": 5, "conv": 3, "head_dim": 4, "groups": 3}),
}

keep_float64()


def run_case(kind, config, batch: int, tokens: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All arrays of one case, by name."""
    mixer = kind(config, 0).double().eval()
    with torch.no_grad():
        for name, weight in mixer.named_parameters():
            middle = 1.0 if name.endswith(("norm.weight", "D")) else 0.0
            weight.copy_(torch.from_numpy(middle + 0.5 * rng.standard_normal(weight.shape)))
    x = torch.from_numpy(rng.standard_normal((batch, tokens, WIDTH))).requires_grad_()
    return arrays_of(mixer, mixer, x, rng)


if __name__ == "__main__":
    settings = np.array(json.dumps({name: {"width": WIDTH} | ours for name, (_, _, ours) in CASES.items()}))
    write(__doc__, 11, lambda batch, tokens: {name: partial(run_case, kind, config, batch, tokens)
                                              for name, (kind, config, _) in CASES.items()}, {"settings": settings})
