"""What an image run reads: one frozen dataclass for generated, local and prepared images."""

from __future__ import annotations

from dataclasses import dataclass

from memtok_jax.data.errors import DataError, nearest

CROPS = ("none", "padded", "resized")
FILTERS = ("grey", "solarise", "blur")


@dataclass(frozen=True)
class CompositesConfig:
    """Generated images: an object with a texture on a smooth background.

    classes: at most 10, five outlines in two textures. images: how many different ones there are to train on. objects: at
    most so many in an image, all of its class. smallest, largest: diameter of an object as a fraction of the shorter side.
    noise: standard deviation of the noise on every pixel, of 255.
    """

    classes: int = 10
    images: int = 1_000_000
    objects: int = 1
    smallest: float = 0.4
    largest: float = 0.65
    noise: float = 3.0

    def __post_init__(self):
        if not 2 <= self.classes <= 10:
            raise DataError(f"composites.classes must lie in 2 .. 10, got {self.classes}")
        if self.images < 1 or self.objects < 1 or self.noise < 0:
            raise DataError(f"composites.images and objects must be at least 1 and noise not negative, got {self.images}, "
                            f"{self.objects}, {self.noise}")
        if not 0 < self.smallest <= self.largest <= 1:
            raise DataError(f"composites: 0 < smallest <= largest <= 1, got {self.smallest} and {self.largest}")


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training image. Nothing by default.

    crop: "none"; "padded", a random window after mirrored padding by an eighth of each side; "resized", a random window
    of 8 to 100 % of the area, scaled back. flip: whether left and right are exchanged for every other image. filters: one of
    them at random for each image ("grey", "solarise", "blur": the 3-Augment of DeiT III, arXiv 2204.07118). jitter: brightness,
    contrast and saturation are each scaled by a factor in [1 - jitter, 1 + jitter].
    mixup, cutmix: each image is mixed with its neighbour in the batch, in a proportion drawn from Beta(a, a) with this a, by a
    weighted sum of pixels (arXiv 1710.09412) or by a window of the other (arXiv 1905.04899); 0 does not; with both a coin
    decides, as in timm. Targets are then shares of the classes, f32[b, 1, classes], instead of labels.
    """

    crop: str = "none"
    flip: bool = False
    filters: tuple[str, ...] = ()
    jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether targets are shares."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self):
        if self.mixup < 0 or self.cutmix < 0:
            raise DataError(f"augment.mixup and cutmix must not be negative, got {self.mixup} and {self.cutmix}")
        if self.crop not in CROPS:
            raise DataError(f"augment.crop is '{self.crop}', known: {', '.join(CROPS)}{nearest(self.crop, CROPS)}")
        for name in self.filters:
            if name not in FILTERS:
                raise DataError(f"augment.filters has '{name}', known: {', '.join(FILTERS)}{nearest(name, FILTERS)}")
        if not 0 <= self.jitter <= 1:
            raise DataError(f"augment.jitter must lie in 0 .. 1, got {self.jitter}")


@dataclass(frozen=True)
class ImagesConfig:
    """Source, size and augmentation of images. A batch holds B of them, each a sequence of one.

    source: "composites" (generated, no download), "fashion_mnist", "coco_permissive" (to look at only), "tfds:NAME", or the path
        of a folder with one sub-folder for each class (or with "train" and "valid" or "test" above them).
    size: (rows, columns). Larger and smaller images are scaled until they cover it and cut around their middle.
    channels: 3, or 1 for grey. seed: order of the training images and their augmentation; held-out images do not depend on it.
    data_dir: folder of the local data sets ("" = environment variable MEMTOK_DATA_DIR; of TFDS, its own).
    held_out: fraction kept for evaluation where the source has no split of its own.
    eval_split: "valid", or "test" where the source has it. eval_samples: at most so many held-out images (0 = all).
    composites: settings of the generator. augment: of the training images.
    """

    source: str = "composites"
    size: tuple[int, int] = (32, 32)
    channels: int = 3
    seed: int = 0
    data_dir: str = ""
    held_out: float = 0.05
    eval_split: str = "valid"
    eval_samples: int = 0
    composites: CompositesConfig = CompositesConfig()
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self):
        if not self.source:
            raise DataError("data source is empty; name a data set, the path of a folder or tfds:NAME")
        if min(self.size) < 1:
            raise DataError(f"data.size is {self.size}; rows and columns must be at least 1")
        if self.channels not in (1, 3):
            raise DataError(f"data.channels must be 1 (grey) or 3 (red, green, blue), got {self.channels}")
        if not 0 <= self.seed < 2**63 or self.eval_samples < 0:
            raise DataError(f"seed and eval_samples must not be negative, got {self.seed} and {self.eval_samples}")
        if not 0 < self.held_out < 1:
            raise DataError(f"held_out is a fraction between 0 and 1, got {self.held_out}")

    @property
    def sequence(self) -> int:
        """One image is a sequence of one."""
        return 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """None but `sequence`."""
        return ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels) of an image; its numbers are uint8."""
        return (*self.size, self.channels)

