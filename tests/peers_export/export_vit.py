"""Write what vision transformers of transformers and timm compute from random weights to an .npz file.

Run with a Python that has them (nothing of the package is imported):

    pip install torch==2.13.0          # first and alone; a CPU build is enough
    pip install transformers==5.23.0 timm==1.0.31 numpy
    python tests/peers_export/export_vit.py --output=tests/data/vit_parity.npz --small

Weights and images are drawn by `vit_random.py` from the seed on both sides; the file has their names and shapes only.

    settings                     JSON text: versions, seed, for each case its class, arguments, names and shapes, image sizes
    CASE/ROWSxCOLUMNS/hidden     f32[L+1, B, T, D]: embedding and output of every block, before the final norm
    CASE/ROWSxCOLUMNS/attention  f32[L, B, H, T, T]
    CASE/ROWSxCOLUMNS/last       f32[B, T, D] after the final norm
    CASE/ROWSxCOLUMNS/masked     the same for an input with masked patches, where the model has a mask token
    CASE/ROWSxCOLUMNS/logits     f32[B, classes], where it has a classifier
    dinov3/ROWSxCOLUMNS/angles   cosines and sines [2, n, K] of the rotation
    table/G/ROWSxCOLUMNS/MODE    a G x G table resized by torch.nn.functional.interpolate, [rows, columns, 2]

--small: narrower models, one image, fewer sizes and arrays, for a file that can be kept in a repository.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from importlib.metadata import version

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
import vit_random  # noqa: E402
from torch.nn import functional as F  # noqa: E402

# timm imports torchvision, which beside a CPU build of torch stops at two operators that it does not find.
VISION_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    VISION_OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

CLASSES = 7
SIZES = ((56, 56), (84, 56), (28, 28), (56, 112), (98, 98))  # the first is the native one
SIZES_V3 = ((64, 64), (96, 64), (32, 32), (64, 128), (112, 112))
TABLES = {4: ((1, 1), (2, 2), (3, 5), (4, 4), (2, 8), (7, 4), (9, 13)),
          16: ((4, 4), (8, 12), (15, 17), (16, 16), (20, 16), (32, 32), (37, 21)),
          37: ((16, 16), (12, 20), (36, 37), (37, 37), (40, 30), (24, 52), (60, 60))}

# Case -> (class, arguments that differ from the usual ones of its family).
CASES = {
    "registers": ("Dinov2WithRegistersModel", {}),
    "one_register": ("Dinov2WithRegistersModel", {"num_register_tokens": 1}),
    "swiglu": ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
    "classifier": ("Dinov2WithRegistersForImageClassification", {"num_labels": CLASSES}),
    "plain": ("Dinov2Model", {}),
    "dinov3": ("DINOv3ViTModel", {}),
    "dinov3_gated": ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu"}),
    "timm_registers": ("VisionTransformer", {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}),
    "timm_resized": ("VisionTransformer", {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5,
                                           "dynamic_img_size": False}),
    "timm_rows_for_all": ("VisionTransformer", {"reg_tokens": 4, "no_embed_class": False}),
    "timm_average": ("VisionTransformer", {"reg_tokens": 4, "no_embed_class": True, "class_token": False, "global_pool": "avg"}),
    "timm_qk_norm": ("VisionTransformer", {"reg_tokens": 4, "no_embed_class": True, "qk_norm": True}),
    "timm_plain": ("VisionTransformer", {"reg_tokens": 0}),
}


def arguments_of(kind: str, changes: dict, width: int, layers: int) -> dict:
    """All arguments of a model's constructor (timm) or of its config's (transformers)."""
    if kind == "VisionTransformer":
        return {"img_size": 56, "patch_size": 14, "embed_dim": width, "depth": layers, "num_heads": 4, "mlp_ratio": 4.0,
                "num_classes": CLASSES, "dynamic_img_size": True} | changes
    usual = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "layerscale_value": 1.0}
    if kind == "DINOv3ViTModel":
        hidden = 4 * width if "use_gated_mlp" not in changes else 11 * width // 4
        return usual | {"image_size": 64, "patch_size": 16, "intermediate_size": hidden, "num_register_tokens": 4,
                        "key_bias": False, "rope_theta": 100.0} | changes
    registers = {} if kind == "Dinov2Model" else {"num_register_tokens": 4}
    return usual | {"mlp_ratio": 4, "image_size": 56, "patch_size": 14} | registers | changes


def build(kind: str, arguments: dict) -> torch.nn.Module:
    """The model, in evaluation mode."""
    if kind == "VisionTransformer":
        model = VisionTransformer(**arguments)
        for block in model.blocks:
            block.attn.fused_attn = False
        return model.eval()
    config = {"Dinov2Model": "Dinov2Config", "DINOv3ViTModel": "DINOv3ViTConfig"}.get(kind, "Dinov2WithRegistersConfig")
    options = dict(arguments) | {"attn_implementation": "eager"}
    return getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()


def scramble(model: torch.nn.Module, seed: int) -> dict[str, tuple[int, ...]]:
    """Give every parameter its random numbers; returns names and shapes."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, array in vit_random.weights(shapes, seed).items():
        model.get_parameter(name).data = torch.from_numpy(array)
    return shapes


def run_transformers(model: torch.nn.Module, pixels: torch.Tensor, seed: int) -> dict[str, np.ndarray]:
    """One call of a model of transformers, and one with masked patches."""
    out = model(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    found = {"hidden": torch.stack(out.hidden_states), "attention": torch.stack(out.attentions)}
    if hasattr(out, "logits"):
        return found | {"logits": out.logits}
    patch = model.config.patch_size
    masked = torch.from_numpy(vit_random.mask(len(pixels), pixels.shape[2] // patch * (pixels.shape[3] // patch), seed))
    again = model(pixel_values=pixels, bool_masked_pos=masked)
    return found | {"last": out.last_hidden_state, "masked": again.last_hidden_state}


def run_timm(model: VisionTransformer, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """One call of a timm model, its insides caught by hooks."""
    hidden, attention, hooks = [], [], []
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda _, given: hidden.append(given[0])))
    for block in model.blocks:
        hooks.append(block.register_forward_hook(lambda _, given, out: hidden.append(out)))
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, given, out: attention.append(out)))
    last = model.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    return {"hidden": torch.stack(hidden), "attention": torch.stack(attention), "last": last, "logits": model(pixels)}


def run(kind: str, model: torch.nn.Module, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Name -> array of one model and one image size."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if kind == "VisionTransformer":
        if not model.dynamic_img_size:
            model = copy.deepcopy(model)  # what follows resizes the table for good
            model.set_input_size(images.shape[1:3])
        found = run_timm(model, pixels)
    else:
        found = run_transformers(model, pixels, seed)
    if kind == "DINOv3ViTModel":
        found["angles"] = torch.stack(model.rope_embeddings(pixels))
    return {name: array.numpy() for name, array in found.items()}


def tables(seed: int, small: bool) -> dict[str, np.ndarray]:
    """Tables of positions resized by torch in all three conventions."""
    out = {}
    for side, grids in TABLES.items():
        table = torch.from_numpy(np.random.RandomState([seed, side]).standard_normal((1, 2, side, side)).astype(np.float32))
        for rows, columns in grids[1:5] if small else grids:
            scale = ((rows + 0.1) / side, (columns + 0.1) / side)
            options = {"size_aa": {"size": (rows, columns), "antialias": True}, "size_noaa": {"size": (rows, columns)},
                       "offset_noaa": {"scale_factor": scale}}
            for mode, option in options.items():
                resized = F.interpolate(table, mode="bicubic", **option)[0].permute(1, 2, 0)
                if not (small and side == 37):
                    out[f"table/{side}/{rows}x{columns}/{mode}"] = resized.numpy()
    return out


def export(output: str, seed: int, small: bool) -> None:
    """Compute all cases and write them."""
    width, layers, batch = (32, 2, 1) if small else (64, 3, 2)
    arrays, cases = tables(seed, small), {}
    for case, (kind, changes) in CASES.items():
        arguments = arguments_of(kind, changes, width, layers)
        sizes = SIZES_V3 if kind == "DINOv3ViTModel" else SIZES
        sizes = sizes[1:3] if small else sizes
        model = build(kind, arguments)
        cases[case] = {"kind": kind, "arguments": arguments, "shapes": scramble(model, seed), "sizes": sizes}
        for rows, columns in sizes:
            with torch.no_grad():
                found = run(kind, model, vit_random.images(batch, rows, columns, seed), seed)
            wanted = found.keys() if not small or rows == 28 or kind == "DINOv3ViTModel" else found.keys() - {"attention"}
            arrays |= {f"{case}/{rows}x{columns}/{name}": found[name] for name in wanted}
    settings = {"seed": seed, "batch": batch, "cases": cases,
                **{name: version(name) for name in ("torch", "transformers", "timm")}}
    np.savez_compressed(output, settings=json.dumps(settings), **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--small", action="store_true", help="the case that is kept in the repository")
    export(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
