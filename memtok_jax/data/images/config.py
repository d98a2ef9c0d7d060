"""What an image run reads: one frozen dataclass for generated, local and prepared images."""

from __future__ import annotations

from dataclasses import dataclass

from memtok_jax.config import UserError, check_numbers, choose

CROPS = ("none", "padded", "resized")
BAD_FILES = ("stop", "skip")
FILTERS = ("grey", "solarise", "blur")


@dataclass(frozen=True)
class CompositesConfig:
    """Generated images: an object with a texture on a smooth background.

    classes: number of classes, 2 to 10: five outlines in two textures.
    images: number of different training images.
    objects: at most this many in an image, all of its class.
    smallest: least diameter of an object as a fraction of the shorter side.
    largest: greatest diameter, in the same unit.
    noise: standard deviation of the noise on every pixel; white is 255.
    """

    classes: int = 10
    images: int = 1_000_000
    objects: int = 1
    smallest: float = 0.4
    largest: float = 0.65
    noise: float = 3.0

    def __post_init__(self):
        check_numbers("composites", self, at_least=dict(images=1, objects=1, noise=0), above=dict(smallest=0),
                      between=dict(classes=(2, 10), largest=(self.smallest, 1)))


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training image; by default nothing.

    crop: "none"; "padded", a random window after mirrored padding by an eighth of each side; "resized", a random window of 8 to
        100 % of the area, scaled back.
    flip: whether to exchange left and right in a random half of the images.
    filters: names of filters, of which one is drawn for each image ("grey", "solarise", "blur": the 3-Augment of DeiT III,
        arXiv 2204.07118).
    jitter: brightness, contrast and saturation are each scaled by a factor in [1 - jitter, 1 + jitter].
    mixup: a of Beta(a, a), from which the share of an image in a weighted sum with its neighbour is drawn (arXiv 1710.09412).
    cutmix: the same for a window of the neighbour in the image (arXiv 1905.04899). 0 switches mixup or cutmix off; with both, one
        of them is drawn for each image.

    With mixup or cutmix, targets are shares of the classes, f32[b, 1, classes], instead of labels.
    """

    crop: str = "none"
    flip: bool = False
    filters: tuple[str, ...] = ()
    jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that targets are shares of the classes."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self):
        check_numbers("augment", self, at_least=dict(mixup=0, cutmix=0), between=dict(jitter=(0, 1)))
        choose("augment.crop", self.crop, CROPS)
        for name in self.filters:
            choose("augment.filters", name, FILTERS)


@dataclass(frozen=True)
class ImagesConfig:
    """Source, size and augmentation of images. A batch holds B of them, each a sequence of one.

    source: "composites" (generated, no download), "fashion_mnist", "coco_permissive" (to look at only), "tfds:NAME", or the path
        of a folder with one sub-folder for each class (or with "train" and "valid" or "test" above them).
    size: (rows, columns). Larger and smaller images are scaled until they cover it and cut around their middle.
    channels: 3 (red, green, blue), or 1 (grey).
    seed: of the order of the training images and of their augmentation; held-out images do not depend on it.
    data_dir: folder of the local data sets ("" = environment variable MEMTOK_DATA_DIR, or for "tfds:NAME" the default of TFDS).
    held_out: fraction kept for evaluation if the source has no held-out split.
    eval_split: "valid", or "test" if the source has it.
    eval_samples: at most this many held-out images are scored (0 = all).
    on_bad_file: what happens if an image file in a folder cannot be read: "stop" names the file; "skip" leaves such files out and
        says how many they are. Damaged headers, wrong checksums and photos that were cut off are found before the run; other damage
        stops the run when the file is drawn.
    composites: settings of the generator.
    augment: of the training images.
    """

    source: str = "composites"
    size: tuple[int, int] = (32, 32)
    channels: int = 3
    seed: int = 0
    data_dir: str = ""
    held_out: float = 0.05
    eval_split: str = "valid"
    eval_samples: int = 0
    on_bad_file: str = "stop"
    composites: CompositesConfig = CompositesConfig()
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self):
        check_numbers("data", self, at_least=dict(size=1, seed=0, eval_samples=0), above=dict(held_out=0), below=dict(held_out=1))
        if self.channels not in (1, 3):
            raise UserError(f"data.channels is {self.channels}; it must be 1 (grey) or 3 (red, green, blue)")
        choose("data.on_bad_file", self.on_bad_file, BAD_FILES)
        if not self.source:
            raise UserError("data.source is empty; name a data set, the path of a folder or tfds:NAME")

    @property
    def sequence(self) -> int:
        """One image is a sequence of one."""
        return 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Empty: no other length than `sequence`."""
        return ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels) of an image; its numbers are uint8."""
        return (*self.size, self.channels)

