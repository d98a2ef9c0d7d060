"""A vision transformer with registers, trained as an image classifier.

Paper: Vision Transformers Need Registers, https://arxiv.org/abs/2309.16588
Command: python train.py --config=vit_registers, then python -m memtok_jax.analysis.registers --checkpoint=runs/vit_registers
    without registers: --config.model.vit.registers=0 (with one: 1); any folder of images: --data=FOLDER; TFDS: --data=tfds:cifar10
Hardware, time: 2 CPU cores, 4 min 21 s (the preset "laptop"; generated images, no download)
Expected: 52.8 % of 1,000 held-out images after 1,000 steps (one seed); chance 10.0 %, most frequent class 12.7 %, ridge on pixels
    11.7 %. fashion_mnist: 82.5 % of the test images after 400 steps in minutes (one seed); ridge on pixels 81.1 %

Presets: laptop; fashion_mnist (files under --data_dir); cifar10 and imagenet_s, _b, _l (through TFDS; sizes and recipe of DeiT III:
LAMB, binary cross-entropy, mixup, cutmix, 3-Augment, LayerScale, stochastic depth; no repeated augmentation); experiment_b (ViT-S
on 64 x 64 composites, meant for one GPU). Of these only laptop and fashion_mnist have been run.
On small models of a few minutes no artifact of the norm is to be expected, with or without registers; see docs/results.
"""

from __future__ import annotations

from memtok_jax.training.experiment import Experiment
from memtok_jax.training.image_recipes import cifar10, experiment_b, fashion_mnist, imagenet, laptop_images

SIZES = {"imagenet_s": "S", "imagenet_b": "B", "imagenet_l": "L"}
PRESETS = ("laptop", "fashion_mnist", "cifar10", *SIZES, "experiment_b")


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    if preset in SIZES:
        return imagenet(SIZES[preset])
    return {"laptop": laptop_images, "fashion_mnist": fashion_mnist, "cifar10": cifar10, "experiment_b": experiment_b}[preset]()
