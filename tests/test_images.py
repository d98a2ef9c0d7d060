"""Images: sources in their formats, batches that can be resumed and divided, augmentation, boxes that follow."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from memtok_jax import data
from memtok_jax.analysis import discovery
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.images import augment, composites, folder, idx, pictures, ridge
from memtok_jax.data.images.config import AugmentConfig, CompositesConfig, ImagesConfig

ALL = AugmentConfig(crop="padded", flip=True, filters=("grey", "solarise", "blur"), jitter=0.3)
SMALL = ImagesConfig(size=(16, 24), composites=CompositesConfig(images=40), augment=ALL)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(a, b):
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# --------------------------------------------------------------------------------------------------------------- batches

def test_batches_hold_a_sequence_of_one_image():
    batch = next(data.open_train(SMALL, 6))
    assert batch["inputs"].shape == (6, 1, 16, 24, 3) and batch["inputs"].dtype == np.uint8
    assert batch["targets"].shape == (6, 1) and batch["targets"].dtype == np.int32 and not batch["start"].any()
    assert data.input_shape(SMALL) == (batch["inputs"].shape[1:], np.uint8) and data.vocabulary(SMALL) == 10


def test_training_resumes_exactly_and_depends_on_the_seed():
    whole = take(data.open_train(SMALL, 8), 12)
    first = data.open_train(SMALL, 8)
    take(first, 7)
    second = data.open_train(SMALL, 8)
    second.set_state(json.loads(json.dumps(first.get_state())))
    same(take(second, 5), whole[7:])
    other = next(data.open_train(ImagesConfig(size=(16, 24), composites=SMALL.composites, augment=ALL, seed=1), 8))
    assert (other["inputs"] != whole[0]["inputs"]).any()
    with pytest.raises(DataError, match="belongs to other data"):
        data.open_train(ImagesConfig(size=(16, 24), composites=SMALL.composites), 8).set_state(first.get_state())


def test_processes_read_the_rows_of_one_batch():
    whole = take(data.open_train(SMALL, 6), 3)
    parts = [take(data.open_train(SMALL, 6, index, 3), 3) for index in range(3)]
    for step, batch in enumerate(whole):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([p[step][name] for p in parts]))


def test_an_epoch_shows_every_image_once():
    plain = ImagesConfig(size=(16, 16), composites=CompositesConfig(images=12))
    seen = [row.tobytes() for batch in take(data.open_train(plain, 8), 3) for row in batch["inputs"]]
    assert len(set(seen[:12])) == len(set(seen[12:])) == 12 and set(seen[:12]) == set(seen[12:])
    assert seen[:12] != seen[12:], "the second epoch comes in another order"


def test_evaluation_covers_every_image_once_whatever_the_batch():
    cfg = ImagesConfig(size=(16, 16), eval_samples=10, augment=ALL)
    by_number = {}
    for batch in (3, 5, 10):
        rows = [(int(b["document"][r]), b["inputs"][r], int(b["targets"][r, 0])) for b in data.open_eval(cfg, batch)
                for r in range(batch) if b["length"][r]]
        assert [n for n, *_ in rows] == list(range(10))
        for n, pixels, label in rows:
            np.testing.assert_array_equal(pixels, by_number.setdefault(n, pixels))
            assert label >= 0
    last = data.open_eval(cfg, 3)[3]
    assert last["length"].tolist() == [1, 0, 0] and last["targets"].tolist()[1:] == [[-100], [-100]]
    trained = {row.tobytes() for row in next(data.open_train(ImagesConfig(size=(16, 16)), 200))["inputs"]}
    assert not trained & {pixels.tobytes() for pixels in by_number.values()}


# ------------------------------------------------------------------------------------------------------------ composites

def test_a_composite_is_a_function_of_its_number():
    one, again, other = (composites.picture(CompositesConfig(), (32, 32), 3, n) for n in (5, 5, 6))
    np.testing.assert_array_equal(one.pixels, again.pixels)
    assert (one.pixels != other.pixels).any()


def test_the_box_holds_the_object_and_nothing_else():
    """With the objects left out of the same draws, images differ inside the boxes alone, and up to their borders."""
    cfg = CompositesConfig(noise=0.0, objects=2)
    for number in range(20):
        shown = composites.picture(cfg, (32, 40), 3, number)
        rng = np.random.default_rng(number)
        rng.integers(cfg.classes)
        bare = np.clip(np.rint(composites.background(rng, (32, 40))), 0, 255).astype(np.uint8)
        changed, inside = (shown.pixels != bare).any(-1), np.zeros((32, 40), bool)
        for x0, y0, x1, y1 in shown.boxes.astype(int):
            inside[y0:y1, x0:x1] = True
            part = changed[y0:y1, x0:x1]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
        assert not changed[~inside].any()


def test_backgrounds_repeat_themselves():
    """Neighbouring patches of a background are nearly equal; those of random pixels are not."""
    from memtok_jax.analysis.norms import neighbour_cosine

    rng = np.random.default_rng(0)
    smooth = composites.background(rng, (32, 32)).reshape(8, 4, 8, 4, 3).swapaxes(1, 2).reshape(1, 64, -1)
    noise = rng.standard_normal((1, 64, 48))
    assert neighbour_cosine(smooth, (8, 8)).mean() > 0.95 and abs(neighbour_cosine(noise, (8, 8)).mean()) < 0.1


def test_every_class_is_drawn_and_outlines_differ():
    labels = {composites.picture(CompositesConfig(classes=4), (16, 16), 1, n).label for n in range(60)}
    assert labels == {0, 1, 2, 3}
    v, u = np.meshgrid(*[np.linspace(-1, 1, 41)] * 2, indexing="ij")
    shapes = [composites.outline(name, u, v) for name in composites.OUTLINES]
    assert all((a != b).mean() > 0.03 for i, a in enumerate(shapes) for b in shapes[:i])


# -------------------------------------------------------------------------------------------------------------- idx files

def write_idx(path, magic, array, packed=True):
    raw = np.array([magic, *array.shape], ">i4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.fixture
def tiny_idx(tmp_path):
    """A folder of idx files with more training images than are kept for validation."""
    (tmp_path / "fashion_mnist").mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", idx.VALIDATION + 7), ("t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28))
        write_idx(tmp_path / "fashion_mnist" / f"{part}-images-idx3-ubyte.gz", 2051, images)
        write_idx(tmp_path / "fashion_mnist" / f"{part}-labels-idx1-ubyte", 2049, np.arange(count) % 10, packed=False)
    return tmp_path


def test_idx_files_become_splits(tiny_idx):
    cfg = ImagesConfig(source="fashion_mnist", size=(28, 28), channels=1, data_dir=str(tiny_idx))
    assert "7 images of 10 classes to train on, 5,000 of 5,000 held out (valid)" in data.describe(cfg)
    first = data.open_eval(cfg, 2)[0]
    assert first["targets"].ravel().tolist() == [7, 8], "validation begins behind the training images"
    raw = np.frombuffer(gzip.decompress((tiny_idx / "fashion_mnist" / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8)
    np.testing.assert_array_equal(first["inputs"][0, 0, ..., 0].ravel(), raw[16 + 7 * 784:16 + 8 * 784])


def test_idx_files_that_do_not_fit(tmp_path):
    write_idx(tmp_path / "images", 2051, np.zeros((2, 3, 3)), packed=False)
    with pytest.raises(DataError, match="begins with 2051, an idx file of this kind with 2049"):
        idx.read(tmp_path / "images", 2049)
    (tmp_path / "images").write_bytes((tmp_path / "images").read_bytes()[:-1])
    with pytest.raises(DataError, match="says 2 x 3 x 3 numbers, it holds 17"):
        idx.read(tmp_path / "images", 2051)
    with pytest.raises(DataNotFoundError, match="real data not found: .*fashion_mnist; set MEMTOK_DATA_DIR or pass --data_dir"):
        data.describe(ImagesConfig(source="fashion_mnist", size=(28, 28), data_dir=str(tmp_path)))


@pytest.mark.realdata
def test_fashion_mnist_and_its_ridge_baseline():
    cfg = ImagesConfig(source="fashion_mnist", size=(28, 28), channels=1, eval_split="test")
    where = os.path.join(os.environ["MEMTOK_DATA_DIR"], "fashion_mnist")
    if not os.path.isdir(where):
        pytest.skip(f"real data not found: {where}; set MEMTOK_DATA_DIR or pass --data_dir")
    first = next(iter(data.open_eval(cfg, 10)))
    assert first["targets"].ravel().tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7] and first["inputs"][0].sum() == 33_456
    free = ridge.image_baselines(cfg)
    assert free["majority"] == 0.1 and free["ridge on pixels (55,000 images)"] == pytest.approx(0.811, abs=0.003)


# ----------------------------------------------------------------------------------------------------------------- folder

@pytest.fixture
def photos(tmp_path):
    """Two classes of six images of different sizes and kinds, and boxes for one of them."""
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for n in range(12):
        place = tmp_path / ("cats" if n % 2 else "dogs")
        place.mkdir(exist_ok=True)
        mode = ("RGB", "L", "RGBA")[n % 3]
        shape = (20 + n, 30, {"RGB": 3, "L": 1, "RGBA": 4}[mode])
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(place / f"{n}.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"dogs/0.png": [[3, 0, 20, 20]]}))
    return tmp_path


def test_a_folder_is_divided_by_name(photos):
    cfg = ImagesConfig(source=str(photos), size=(16, 16), held_out=0.25)
    assert "9 images of 2 classes to train on, 3 of 3 held out" in data.describe(cfg)
    batch = next(data.open_train(cfg, 9))
    assert batch["inputs"].shape == (9, 1, 16, 16, 3) and set(batch["targets"].ravel()) == {0, 1}


def test_named_splits_are_kept_apart(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("splits")
    for split in ("train", "val"):
        (root / split).symlink_to(photos)
    cfg = ImagesConfig(source=str(root), size=(16, 16))
    assert "12 images of 2 classes to train on, 12 of 12 held out" in data.describe(cfg)


def test_boxes_follow_the_image(photos):
    """20 x 30 pixels scaled to a height of 10 and cut to 10 columns around the middle: x -> (x - 5) / 2, y -> y / 2."""
    found = folder.everything(photos)
    (one,) = (p for p in map(found.read, range(found.count)) if len(p.boxes))
    np.testing.assert_allclose(pictures.fit(one, (10, 10), 3).boxes, [[0, 0, 7.5, 10]], atol=1e-5)


def test_bad_headers_stop_the_run_before_it_begins_or_are_left_out(photos):
    good = (photos / "cats" / "1.png").read_bytes()
    (photos / "cats" / "torn.png").write_bytes(good[:60])
    (photos / "dogs" / "text.jpg").write_text("no image")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    (photos / "dogs" / "flipped.png").write_bytes(flipped)
    cfg = ImagesConfig(source=str(photos), size=(16, 16), held_out=0.25)
    with pytest.raises(UserError, match="torn.png is not an image .*; 3 of 15 files are like that; remove them, or set") as error:
        data.open_train(cfg, 4)
    assert "\n" not in str(error.value)
    skipping = replace(cfg, on_bad_file="skip")
    said = data.describe(skipping)
    assert "9 images of 2 classes to train on" in said and "3 files left out, the first: " in said and "torn.png" in said
    assert next(data.open_train(skipping, 9))["inputs"].shape[0] == 9


def test_a_photo_that_was_cut_off_is_found_before_the_run(tmp_path):
    """JPEG: headers say nothing about it. One with bytes of a camera behind its end is whole."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    bytes_of = picture_of(tmp_path, noise, "x.jpg").read_bytes()
    whole, cut = {"a": bytes_of, "b": bytes_of + b"camera" * 99}, {"c": bytes_of[:len(bytes_of) // 2]}
    for name, content in (whole | cut).items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    found = folder._unreadable_files([tmp_path / f"{name}.jpg" for name in (*whole, *cut)])
    assert list(found) == [tmp_path / "c.jpg"] and "c.jpg is not an image that can be read (OSError: " in found[tmp_path / "c.jpg"]


def picture_of(tmp_path, array, name, **options):
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(array).save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_grey_of_16_bits_is_scaled(name, tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(folder.decode(picture_of(tmp_path, ramp * 257, name))[..., 0], ramp)
    between = picture_of(tmp_path, np.array([[0, 128, 129, 65535 - 129]], np.uint16), name)
    assert folder.decode(between).ravel().tolist() == [0, 0, 1, 254], "rounded to the nearest"


def test_numbers_of_32_bits_are_refused(tmp_path):
    ramp = np.arange(16, dtype=np.float32).reshape(4, 4)
    for array in (ramp / 16, ramp * 1e8, (ramp * 1e8).astype(np.int32)):
        with pytest.raises(UserError, match=f"x.tif has {array.dtype} pixels, and nothing tells which numbers are black and white"):
            folder.decode(picture_of(tmp_path, array, "x.tif"))
    with pytest.raises(UserError, match="photometric interpretation 0; of grey above 8 bits only 16"):
        folder.decode(picture_of(tmp_path, ramp.astype(np.uint16), "x.tif", tiffinfo={262: 0}))
    assert pictures.to_bytes(np.array([False, True]), "x").tolist() == [0, 255]
    assert pictures.to_bytes(np.array([0, 65535], ">u2"), "x").tolist() == [0, 255]


def test_images_are_turned_as_they_say(tmp_path):
    """The eight values of the EXIF orientation, against turns of the array written down from the standard."""
    Image = pytest.importorskip("PIL.Image")
    shown = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
    stored = {1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T, 6: np.rot90(shown),
              7: shown[::-1, ::-1].T, 8: np.rot90(shown, -1)}
    for value, array in stored.items():
        for dtype, factor in ((np.uint8, 1), (np.uint16, 257)):
            exif = Image.Exif()
            exif[0x0112] = value
            path = picture_of(tmp_path, np.ascontiguousarray(array.astype(dtype) * dtype(factor)), "x.png", exif=exif)
            np.testing.assert_array_equal(folder.decode(path)[..., 0], shown, err_msg=f"orientation {value}, {dtype.__name__}")


def test_folders_without_classes_are_refused(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    source = ImagesConfig(source=str(root), size=(16, 16))
    (root / "cats").symlink_to(photos / "cats")
    with pytest.raises(UserError, match="training images of one class only, 'cats'; a classifier needs at least two"):
        data.describe(source)
    (root / "loose.png").symlink_to(photos / "dogs" / "0.png")
    with pytest.raises(UserError, match="loose.png is in no class folder, as 1 of 7 images"):
        data.describe(source)
    (root / "valid").mkdir()
    with pytest.raises(UserError, match="has a folder valid, but no folder train"):
        data.describe(source)


@pytest.mark.parametrize("kind, options, text", [
    (ImagesConfig, dict(size=(4,)), r"data.size is \(4,\); it must be a tuple of 2 items"),
    (ImagesConfig, dict(size=4), "data.size is 4; it must be a tuple"), (ImagesConfig, dict(size=(0, 4)), "must be at least 1"),
    (ImagesConfig, dict(size=(4.5, 4)), "data.size is"),
    (ImagesConfig, dict(channels=2), "data.channels is 2; it must be 1 .grey. or 3"),
    (ImagesConfig, dict(held_out=float("nan")), "data.held_out is nan; it must be finite"),
    (ImagesConfig, dict(held_out=1), "must be below 1"), (ImagesConfig, dict(seed=2**63), "data.seed is"),
    (ImagesConfig, dict(on_bad_file="go"), "data.on_bad_file is 'go'; it must be one of stop, skip"),
    (CompositesConfig, dict(classes=1), "composites.classes is 1; it must be between 2 and 10"),
    (CompositesConfig, dict(classes=2.0), "must be a whole number"), (CompositesConfig, dict(smallest=0.0), "must be above 0"),
    (CompositesConfig, dict(smallest=0.7), "composites.largest is 0.65; it must be between 0.7 and 1"),
    (AugmentConfig, dict(jitter=2.0), "augment.jitter is 2.0; it must be between 0 and 1"),
    (AugmentConfig, dict(mixup=float("inf")), "augment.mixup is inf; it must be finite"),
    (AugmentConfig, dict(filters="blur"), "augment.filters is 'blur'; it must be a tuple"),
])
def test_nonsense_is_one_line(kind, options, text):
    with pytest.raises(UserError, match=text) as error:
        kind(**options)
    assert "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_is_named(photos):
    (photos / "cats" / "torn.png").write_bytes((photos / "cats" / "1.png").read_bytes()[:60])
    found = folder.everything(photos)
    with pytest.raises(DataError, match=r"cats/torn.png is not an image that can be read") as error:
        [found.read(n) for n in range(found.count)]
    assert "\n" not in str(error.value)


def test_folders_without_images_and_other_mistakes(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        data.describe(ImagesConfig(source=str(tmp_path)))
    with pytest.raises(DataError, match="unknown image source 'composite'.*did you mean 'composites'"):
        data.describe(ImagesConfig(source="composite"))
    with pytest.raises(DataError, match="no held-out split 'tets', only valid, test; did you mean 'test'"):
        data.describe(ImagesConfig(eval_split="tets"))
    with pytest.raises(UserError, match="augment.filters is 'gray'; .*did you mean 'grey'"):
        AugmentConfig(filters=("gray",))


def test_channels_grey_and_colour():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(pictures.with_channels(colours, 1)[0, :, 0], [76, 150, 29])
    np.testing.assert_array_equal(pictures.with_channels(colours[..., :1], 3), np.repeat(colours[..., :1], 3, -1))
    with pytest.raises(DataError, match="an image has 4 channels"):
        pictures.with_channels(np.zeros((2, 2, 4), np.uint8), 3)


@pytest.mark.realdata
def test_photographs_and_the_corloc_of_trivial_boxes():
    """Counts, and hits of the whole image, its middle three quarters and its middle half, as the data set's description says."""
    pytest.importorskip("PIL")
    where = os.path.join(os.environ["MEMTOK_DATA_DIR"], "coco_permissive")
    if not os.path.isdir(where):
        pytest.skip(f"real data not found: {where}; set MEMTOK_DATA_DIR or pass --data_dir")
    cfg = ImagesConfig(source="coco_permissive")
    photos = data.images.held_out(cfg)
    seen = [photos.read(n) for n in range(photos.count)]
    truth = [one.boxes for one in seen]
    assert len(seen) == 53 and sum(map(len, truth)) == 352 and sum(len(t) > 0 for t in truth) == 52
    for share, hits in ((1, 15), (3 / 4, 22), (1 / 2, 10)):
        sides = np.array([[one.pixels.shape[1], one.pixels.shape[0]] for one in seen])
        guess = np.concatenate([sides * (1 - share) / 2, sides * (1 + share) / 2], 1)
        assert discovery.corloc(guess, truth) == pytest.approx(hits / 52)
    with pytest.raises(DataError, match="coco_permissive has no images to train on, only valid to look at"):
        data.open_train(cfg, 4)


# ----------------------------------------------------------------------------------------------------------- augmentation

IMAGE = np.random.default_rng(3).integers(0, 256, (16, 24, 3), np.uint8)


def test_augmentation_is_a_function_of_its_generator():
    a, b, c = (augment.augment(IMAGE, ALL, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert a.shape == IMAGE.shape and a.dtype == np.uint8 and (a != c).any()
    np.testing.assert_array_equal(augment.augment(IMAGE, AugmentConfig(), np.random.default_rng(0)), IMAGE)


def test_padded_crop_is_a_window_of_the_mirrored_image():
    padded = np.pad(IMAGE, ((2, 2), (3, 3), (0, 0)), mode="reflect")
    windows = {padded[y:y + 16, x:x + 24].tobytes() for y in range(5) for x in range(7)}
    found = {augment.padded_crop(IMAGE, np.random.default_rng(seed)).tobytes() for seed in range(150)}
    assert found <= windows and len(found) > 25


def test_resized_crop_of_a_ramp_stays_a_ramp():
    pytest.importorskip("PIL")
    ramp = np.tile(np.arange(0, 240, 10, np.uint8)[None, :, None], (16, 1, 3))
    for seed in range(10):
        out = augment.resized_crop(ramp, np.random.default_rng(seed)).astype(int)
        slopes = np.diff(out[:, 3:-3], axis=1)
        assert out.shape == ramp.shape and (slopes >= 0).all() and slopes.max() <= 11, "a window, enlarged or as it is"


def test_filters_do_what_they_say():
    rng = np.random.default_rng(0)
    grey = augment.grey(IMAGE, rng)
    assert (grey == grey[..., :1]).all() and abs(grey[..., 0] - IMAGE @ pictures.GREY).max() <= 0.5
    np.testing.assert_array_equal(augment.solarise(np.array([[[0, 127, 128, 255]]], np.uint8), rng)[0, 0], [0, 127, 127, 0])
    flat = np.full((16, 24, 3), 77, np.uint8)
    np.testing.assert_array_equal(augment.blur(flat, rng), flat)
    assert augment.blur(IMAGE, rng).std() < IMAGE.std()
    np.testing.assert_allclose(augment._gaussian(9, 1.3).sum(1), 1, rtol=1e-5)


def test_jitter_without_strength_changes_nothing_and_keeps_grey_grey():
    np.testing.assert_array_equal(augment.jitter(IMAGE, 0.0, np.random.default_rng(0)), IMAGE)
    grey = augment.grey(IMAGE, np.random.default_rng(0))
    out = augment.jitter(grey, 0.4, np.random.default_rng(1))
    assert (np.ptp(out.astype(int), axis=-1) <= 1).all()


# -------------------------------------------------------------------------------------------------------------- baselines

def test_ridge_is_least_squares():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((200, 5)).astype(np.float32), rng.integers(0, 3, 200)
    ones = np.concatenate([x, np.ones((200, 1))], 1)
    targets = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    weights = np.linalg.lstsq(np.concatenate([ones, np.eye(6)]), np.concatenate([targets, np.zeros((6, 3))]), rcond=None)[0]
    np.testing.assert_array_equal(ridge.ridge(x, labels, x, 3), (ones @ weights).argmax(1))


def test_large_images_are_averaged_for_the_baseline():
    image = np.random.default_rng(0).integers(0, 256, (2, 70, 33, 3), np.uint8)
    small = ridge.shrunk(image).reshape(2, 23, 16, 3)
    np.testing.assert_allclose(small[1, 2, 5], image[1, 6:9, 10:12].mean((0, 1)) / 255, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------------- TFDS

def test_tfds_images(tmp_path):
    tfds, Image = pytest.importorskip("tensorflow_datasets"), pytest.importorskip("PIL.Image")
    tfds.disable_progress_bar()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)

    class MemtokTinyImages(tfds.core.GeneratorBasedBuilder):
        """Images for this test."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(6)), "test": self._generate_examples(range(6, 9))}

        def _generate_examples(self, numbers):
            for n in numbers:
                Image.fromarray(pixels[n]).save(tmp_path / f"{n}.png")     # an array would be packed by TensorFlow
                yield n, {"image": str(tmp_path / f"{n}.png"), "label": n % 2}

    try:
        cfg = ImagesConfig(source="tfds:memtok_tiny_images", data_dir=str(tmp_path), size=(8, 8))
        with pytest.raises(DataNotFoundError, match="is not prepared in"):
            data.describe(cfg)
        MemtokTinyImages(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
        (held,) = data.open_eval(cfg, 3)
        np.testing.assert_array_equal(held["inputs"][:, 0], pixels[6:])
        assert held["targets"].ravel().tolist() == [0, 1, 0] and data.vocabulary(cfg) == 2
        assert next(data.open_train(cfg, 6))["inputs"].sum() == pixels[:6].sum()
    finally:
        tfds.core.registered._DATASET_REGISTRY.pop("memtok_tiny_images", None)
    with pytest.raises(DataError, match="has no image with a class label, only text"):
        data.describe(ImagesConfig(source="tfds:lm1b", data_dir=str(tmp_path)))
