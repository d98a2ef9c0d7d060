"""The names that five kinds of vision checkpoints have for the same arrays.

All layouts are translated to and from one list of plain names. A plain name stands for an array in torch's shape: a matrix is
(out, in), a patch kernel (D, C, P, P). A layout says which plain arrays, joined along the first axis, make each of its arrays:

    attn.qkv.weight = q.weight, k.weight, v.weight

| layout             | whose                                                              | blocks                                |
|--------------------|--------------------------------------------------------------------|---------------------------------------|
| "transformers"     | Dinov2Model, Dinov2WithRegistersModel of transformers 5            | encoder.layer.N                       |
| "transformers_hub" | the same in files of transformers 4, as on the hub                 | encoder.layer.N                       |
| "facebookresearch" | facebookresearch/dinov2                                            | blocks.N, or blocks.CHUNK.N           |
| "timm"             | VisionTransformer of pytorch-image-models; facebookresearch/deit   | blocks.N                              |
| "dinov3"           | DINOv3ViTModel of transformers                                     | model.layer.N, layer.N in older files |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from memtok_jax.config import UserError

Names = dict[str, tuple[str, ...]]


class Layout(NamedTuple):
    """Names of one kind of checkpoint.

    top, block: their name -> plain names of the parts it is made of, for the whole model and inside each block.
    mlp: the same for the two kinds of feed-forward network. front: beginning of a block's names, with "{}" for its number.
    table_rows: values of `VitConfig.table_rows` that it allows. mask_rank: number of axes of the mask token.
    uniform: whether all models of the source have heads of 64 features and square images with ImageNet's mean and deviation.
    """

    front: str
    top: Names
    block: Names
    mlp: dict[str, Names]
    table_rows: tuple[str, ...]
    mask_rank: int = 2
    uniform: bool = False


def _both(theirs: str, *ours: str) -> Names:
    """Names of weight and bias."""
    return {f"{theirs}.{kind}": tuple(f"{name}.{kind}" for name in ours) for kind in ("weight", "bias")}


_NORMS = _both("norm1", "norm_attention") | _both("norm2", "norm_mlp")
_MLP = _both("mlp.fc1", "up") | _both("mlp.fc2", "down")
_SEPARATE = (_both("attention.q_proj", "q") | _both("attention.k_proj", "k") | _both("attention.v_proj", "v")
             | _both("attention.o_proj", "o"))
_PACKED = _both("attn.qkv", "q", "k", "v") | _both("attn.proj", "o")
_LAMBDA = {"layer_scale1.lambda1": ("scale_attention",), "layer_scale2.lambda1": ("scale_mlp",)}
_GAMMA = {"ls1.gamma": ("scale_attention",), "ls2.gamma": ("scale_mlp",)}
_TOKENS = {"embeddings.cls_token": ("class",), "embeddings.register_tokens": ("registers",), "embeddings.mask_token": ("mask",)}
_DINOV2 = (_TOKENS | {"embeddings.position_embeddings": ("positions",)} | _both("embeddings.patch_embeddings.projection", "patch")
           | _both("layernorm", "norm") | _both("classifier", "head"))
_TORCH = {"cls_token": ("class",), "pos_embed": ("positions",)} | _both("patch_embed.proj", "patch") | _both("norm", "norm")
_THREE = _both("mlp.gate_proj", "gate") | _both("mlp.up_proj", "up") | _both("mlp.down_proj", "down")

LAYOUTS = {
    "transformers": Layout("encoder.layer.{}.", _DINOV2, _NORMS | _SEPARATE | _LAMBDA, {"gelu": _MLP, "swiglu": _THREE},
                           ("cls+patches",)),
    "transformers_hub": Layout(
        "encoder.layer.{}.", _DINOV2,
        _NORMS | _LAMBDA | _both("attention.attention.query", "q") | _both("attention.attention.key", "k")
        | _both("attention.attention.value", "v") | _both("attention.output.dense", "o"),
        {"gelu": _MLP, "swiglu": _both("mlp.weights_in", "gate", "up") | _both("mlp.weights_out", "down")}, ("cls+patches",)),
    "facebookresearch": Layout(
        "blocks.{}.", _TORCH | {"register_tokens": ("registers",), "mask_token": ("mask",)} | _both("linear_head", "head"),
        _NORMS | _PACKED | _GAMMA,
        {"gelu": _MLP, "swiglu": _both("mlp.w12", "gate", "up") | _both("mlp.w3", "down")}, ("cls+patches",), uniform=True),
    "timm": Layout(
        "blocks.{}.", _TORCH | {"reg_token": ("registers",)} | _both("fc_norm", "norm_pooled") | _both("head", "head"),
        _NORMS | _PACKED | _GAMMA | _both("attn.q_norm", "norm_q") | _both("attn.k_norm", "norm_k"),
        {"gelu": _MLP, "swiglu": _both("mlp.fc1", "gate", "up") | _both("mlp.fc2", "down")}, ("patches", "all")),
    "dinov3": Layout(
        "model.layer.{}.", _TOKENS | _both("embeddings.patch_embeddings", "patch") | _both("norm", "norm"),
        _NORMS | _SEPARATE | _LAMBDA, {"gelu": _both("mlp.up_proj", "up") | _both("mlp.down_proj", "down"), "swiglu": _THREE},
        (), mask_rank=3),
}
# Each model has exactly one of these names.
ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight")


def names(layout: str, feed_forward: str, layers: int) -> Names:
    """All names that such a model can have in a layout, with the plain names of their parts."""
    own = LAYOUTS[layout]
    block = own.block | own.mlp[feed_forward]
    out = dict(own.top)
    for n in range(layers):
        out |= {own.front.format(n) + theirs: tuple(f"layers.{n}.{part}" for part in parts) for theirs, parts in block.items()}
    return out


def feed_forward_of(given: Mapping[str, np.ndarray], layout: str) -> str:
    """"swiglu" or "gelu", by the first block. timm gives both the same names, but SwiGLU's first matrix has twice the outputs."""
    own = LAYOUTS[layout]
    first = own.front.format(0)
    if layout == "timm":
        up, down = (given.get(f"{first}mlp.{name}.weight") for name in ("fc1", "fc2"))
        return "swiglu" if up is not None and down is not None and up.shape[0] == 2 * down.shape[1] else "gelu"
    only_swiglu = own.mlp["swiglu"].keys() - own.mlp["gelu"].keys()
    return "swiglu" if any(first + name in given for name in only_swiglu) else "gelu"


def layers_of(given: Iterable[str], layout: str) -> int:
    """Number of blocks: one more than the highest number in a name."""
    pattern = re.compile(re.escape(LAYOUTS[layout].front).replace(r"\{\}", r"(\d+)"))
    return 1 + max(int(found[1]) for found in map(pattern.match, given) if found)


def usual_name(name: str) -> str:
    """A name of theirs in the form of the table above: without chunks of blocks, and renamed if it is that of an older file."""
    name = re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name)
    name = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)
    return re.sub(r"^layer\.(?=\d+\.)", "model.layer.", name)


def detect(given: Iterable[str]) -> str:
    """The layout that has these (usual) names. Raises UserError if none does."""
    given = set(given)
    if "storage_tokens" in given:
        raise UserError("these are names of facebookresearch/dinov3, which are not read: convert the file with transformers first")
    if "blocks.0.attn.qkv.weight" in given:
        return "facebookresearch" if given & {"register_tokens", "mask_token"} else "timm"
    for layout, name in (("transformers", "encoder.layer.0.attention.q_proj.weight"),
                         ("transformers_hub", "encoder.layer.0.attention.attention.query.weight"),
                         ("dinov3", "model.layer.0.attention.q_proj.weight")):
        if name in given:
            return layout
    some = ", ".join(sorted(given)[:3]) or "none"
    raise UserError(f"no vision transformer of {', '.join(LAYOUTS)} has these names: {some} ...")
