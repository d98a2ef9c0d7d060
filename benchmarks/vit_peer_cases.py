"""The peers' side of `benchmarks.vit`: one line of JSON for one case. Needs torch, transformers and timm, nothing of the package.

    python -m benchmarks.vit_peer_cases --case='{"side": "timm", "registers": 4, "width": 384, ...}'
"""

from __future__ import annotations

import json
from importlib.metadata import version

import torch

from benchmarks import measure


def without_torchvision_operators() -> torch.library.Library:
    """Declare two operators without which torchvision, beside a CPU build of torch, stops at import. The result must be kept."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


KEPT = without_torchvision_operators()


def transformers_model(case: dict) -> torch.nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    return Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(
        hidden_size=case["width"], num_hidden_layers=case["layers"], num_attention_heads=case["heads"], mlp_ratio=4,
        image_size=case["table"] * case["patch"], patch_size=case["patch"], num_register_tokens=case["registers"],
        num_labels=case["classes"], attn_implementation="sdpa"))


def timm_model(case: dict) -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=case["table"] * case["patch"], patch_size=case["patch"], embed_dim=case["width"], depth=case["layers"],
        num_heads=case["heads"], num_classes=case["classes"], reg_tokens=case["registers"], no_embed_class=True, init_values=1e-5,
        dynamic_img_size=True)


def run(case: dict) -> dict:
    """Forward and training step."""
    model = {"transformers": transformers_model, "timm": timm_model}[case["side"]](case).eval()
    images = torch.randn(case["batch"], 3, case["pixels"], case["pixels"])
    labels = torch.arange(case["batch"]) % case["classes"]
    logits = lambda: getattr((out := model(images)), "logits", out)

    def forward():
        with torch.no_grad():
            logits()

    result = {"forward": measure.measure(forward, case["seconds"])}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits(), labels).backward()
        optimizer.step()

    result["training"] = measure.measure(train, case["seconds"])
    return result


def main() -> None:
    case = measure.read_case(__doc__)
    torch.set_num_threads(measure.cores())
    about = {"torch": torch.__version__, case["side"]: version(case["side"])}
    print(json.dumps(run(case) | {"about": about | {"peak_mb": measure.peak_mb()}}))


if __name__ == "__main__":
    main()
