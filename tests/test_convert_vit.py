"""Checkpoints of vision transformers: every layout gives the same model, every file its mistakes by name."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from neural_cases import assert_equal
from peers_export import vit_random
from vit_cases import config, features, images, scrambled

from memtok_jax.config import UserError
from memtok_jax.convert import VitCheckpoint, load_vit, save_vit, tensor_files
from memtok_jax.convert.vit import to_layout
from memtok_jax.models.vision import vit

L, D, F, P, G, M = 2, 32, 48, 4, 3, 3
TOLD = dict(heads=4, grid=(G, G))    # what the weights do not tell


def shapes(hidden: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a facebookresearch checkpoint, written down from its model; `hidden`: those of a block's mlp."""
    out = {"cls_token": (1, 1, D), "pos_embed": (1, 1 + G * G, D), "register_tokens": (1, M, D), "mask_token": (1, D),
           "patch_embed.proj.weight": (D, 3, P, P), "patch_embed.proj.bias": (D,), "norm.weight": (D,), "norm.bias": (D,)}
    block = {"norm1.weight": (D,), "norm1.bias": (D,), "attn.qkv.weight": (3 * D, D), "attn.qkv.bias": (3 * D,),
             "attn.proj.weight": (D, D), "attn.proj.bias": (D,), "ls1.gamma": (D,), "norm2.weight": (D,), "norm2.bias": (D,),
             "ls2.gamma": (D,)} | hidden
    return out | {f"blocks.{n}.{name}": shape for n in range(L) for name, shape in block.items()}


GELU = {"mlp.fc1.weight": (F, D), "mlp.fc1.bias": (F,), "mlp.fc2.weight": (D, F), "mlp.fc2.bias": (D,)}
SWIGLU = {"mlp.w12.weight": (2 * F, D), "mlp.w12.bias": (2 * F,), "mlp.w3.weight": (D, F), "mlp.w3.bias": (D,)}


def facebookresearch(hidden=GELU) -> dict[str, np.ndarray]:
    return vit_random.weights(shapes(hidden), 5)


def renamed(weights, *pairs: tuple[str, str]):
    """The same arrays with parts of their names replaced."""
    out = {}
    for name, array in weights.items():
        for old, new in pairs:
            name = name.replace(old, new)
        out[name] = array
    return out


def as_transformers(weights, hub: bool):
    """By hand, from the table of transformers' own conversion script: names, and packed matrices cut into their parts."""
    cut = {}
    for name, array in weights.items():
        front, kind = name.rpartition(".")[::2]
        if front.endswith("attn.qkv"):
            parts = ("query", "key", "value") if hub else ("q_proj", "k_proj", "v_proj")
            inner = "attention.attention" if hub else "attention"
            cut |= {f"{front[:-8]}{inner}.{part}.{kind}": array[n * D:(n + 1) * D] for n, part in enumerate(parts)}
        elif front.endswith("mlp.w12") and not hub:
            cut |= {name.replace("w12", "gate_proj"): array[:F], name.replace("w12", "up_proj"): array[F:]}
        else:
            cut[name] = array
    return renamed(cut, ("blocks.", "encoder.layer."), ("cls_token", "embeddings.cls_token"),
                   ("mask_token", "embeddings.mask_token"), ("register_tokens", "embeddings.register_tokens"),
                   ("pos_embed", "embeddings.position_embeddings"),
                   ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("ls1.gamma", "layer_scale1.lambda1"),
                   ("ls2.gamma", "layer_scale2.lambda1"), ("attn.proj", "attention.output.dense" if hub else "attention.o_proj"),
                   ("w12", "weights_in"), ("w3", "weights_out" if hub else "down_proj"),
                   ("norm.", "layernorm."))


def as_timm(weights):
    """By hand: no mask token, row 0 of the table inside the class token, SwiGLU under the names of a plain network."""
    out = {name: array for name, array in weights.items() if name != "mask_token"}
    out |= {"cls_token": weights["cls_token"] + weights["pos_embed"][:, :1], "pos_embed": weights["pos_embed"][:, 1:]}
    return renamed(out, ("register_tokens", "reg_token"), ("mlp.w12", "mlp.fc1"), ("mlp.w3", "mlp.fc2"))


def chunked(weights):
    """As files of large facebookresearch models have it: blocks in chunks of one, numbered through."""
    return {name.replace("blocks.", f"blocks.{name.split('.')[1]}.") if name.startswith("blocks") else name: array
            for name, array in weights.items()}


LAYOUTS = {"facebookresearch": lambda w: w, "chunked": chunked, "transformers": lambda w: as_transformers(w, False),
           "transformers_hub": lambda w: as_transformers(w, True), "timm": as_timm}


# ------------------------------------------------------------------------------------------------------ the four layouts

@pytest.mark.parametrize("hidden", [GELU, SWIGLU], ids=["gelu", "swiglu"])
def test_all_layouts_give_the_same_outputs(hidden):
    """The same numbers under five sets of names, at a size that is not the native one."""
    weights, x = facebookresearch(hidden), images(rows=12, columns=20)
    outputs = {}
    for name, change in LAYOUTS.items():
        loaded = load_vit(change(weights), **TOLD)
        assert loaded.layout == name.replace("chunked", "facebookresearch")
        assert loaded.config.feed_forward == ("gelu" if hidden is GELU else "swiglu") and loaded.config.registers == M
        outputs[name] = features(loaded.params, x, loaded.config)
    for name, out in outputs.items():
        for kind in ("cls", "registers", "patches"):
            np.testing.assert_allclose(getattr(out, kind), getattr(outputs["facebookresearch"], kind), atol=2e-6, err_msg=name)


MODELS = {  # layout -> options of a model that it can hold
    "transformers": {}, "transformers_hub": dict(feed_forward="swiglu"),
    "facebookresearch": dict(registers=0, interpolation="offset_noaa"),
    "timm": dict(table_rows="all", mask_token=False, qk_norm=True, layerscale=0.0),
    "dinov3": dict(positions="rope", key_bias=False, epsilon=1e-5, feed_forward="swiglu", grid=(1, 1)),
}


@pytest.mark.parametrize("layout", MODELS)
def test_round_trip_is_exact(layout, tmp_path):
    """Ours -> file -> ours: every parameter bit for bit, and the config that was saved."""
    cfg = config(**MODELS[layout])
    head = {"w": jnp.ones((2 * D, 5)), "b": jnp.arange(5.0)} if layout not in ("dinov3",) else {}
    checkpoint = VitCheckpoint(scrambled(vit.specs(cfg)), cfg, head, layout)
    save_vit(tmp_path / "model.safetensors", checkpoint, layout)
    back = load_vit(tmp_path / "model.safetensors", heads=4, grid=cfg.grid)
    assert back.layout == layout
    assert_equal(back.params, checkpoint.params)
    assert_equal(back.head, head)
    assert replace(back.config, layerscale=cfg.layerscale) == cfg and bool(back.config.layerscale) == bool(cfg.layerscale)
    again = load_vit(to_layout(back, layout), heads=4, grid=cfg.grid)
    assert_equal(again.params, checkpoint.params)


def test_theirs_round_trip_uses_every_name_once():
    """Theirs -> ours -> theirs: the same names, shapes and numbers."""
    for name, change in LAYOUTS.items():
        weights = change(facebookresearch(SWIGLU))
        back = to_layout(load_vit(weights, **TOLD), name.replace("chunked", "facebookresearch"))
        if name == "chunked":
            weights = facebookresearch(SWIGLU)
        assert back.keys() == weights.keys(), name
        for key in weights:
            np.testing.assert_array_equal(back[key], weights[key], err_msg=key)


def test_saving_for_timm_folds_the_class_row():
    loaded = load_vit(facebookresearch(), **TOLD)
    theirs, by_hand = to_layout(loaded, "timm"), as_timm(facebookresearch())
    assert theirs.keys() == by_hand.keys()
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], by_hand[name], err_msg=name)


def test_conventions_of_models_without_registers():
    plain = {name: array for name, array in facebookresearch().items() if name != "register_tokens"}
    found = {name: load_vit(change(plain), **TOLD).config.interpolation for name, change in LAYOUTS.items()}
    assert found == {"facebookresearch": "offset_noaa", "chunked": "offset_noaa", "transformers": "size_noaa",
                     "transformers_hub": "size_noaa", "timm": "size_aa"}


def test_layerscale_of_deit():
    """facebookresearch/deit says gamma_1 inside the block; positions are those of patches."""
    weights = renamed(as_timm(facebookresearch()), ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))
    assert_equal(load_vit(weights, **TOLD).params, load_vit(as_timm(facebookresearch()), **TOLD).params)


def test_names_inside_another_model():
    wrapped = {f"dinov2_with_registers.{name}": array for name, array in as_transformers(facebookresearch(), False).items()}
    wrapped |= {"classifier.weight": np.ones((7, 2 * D), np.float32), "classifier.bias": np.arange(7, dtype=np.float32)}
    loaded = load_vit(wrapped, **TOLD)
    assert loaded.head["w"].shape == (2 * D, 7)
    np.testing.assert_array_equal(loaded.head["b"], np.arange(7))
    assert_equal(loaded.params, load_vit(facebookresearch(), **TOLD).params)


# ---------------------------------------------------------------------------------------------------------------- mistakes

def without(weights, *names):
    return {name: array for name, array in weights.items() if name not in names}


def test_mistakes_are_named():
    weights = facebookresearch()
    cases = [
        (without(weights, "blocks.1.mlp.fc2.bias"), {}, "lacks 'blocks.1.mlp.fc2.bias' of a facebookresearch model of 2 layers"),
        (without(weights, "patch_embed.proj.weight"), {}, "lacks 'patch_embed.proj.weight'"),
        (weights | {"blocks.1.extra": np.zeros(3)}, {}, "'blocks.1.extra' has no place in a facebookresearch model .* .1 left"),
        (weights | {"blocks.0.ls1.gamma": np.zeros(31)}, {}, r"blocks.0.ls1.gamma has the shape \(31,\)"),
        (without(weights, "register_tokens"), {"registers": 3}, "has registers=0, but the option is registers=3"),
        (weights, {"registers": 4}, "has registers=3, but the option is registers=4"),
        (weights | {"pos_embed": np.zeros((1, 12, D), np.float32)}, {}, r"grid=\(3, 3\) does not fit .* has 12 rows with 1 class"),
        (weights, {"grid": (2, 3)}, r"grid=\(2, 3\) does not fit the table of positions, which has 10 rows"),
        (weights, {"heads": 5}, "width=32 does not divide into heads=5"),
        (weights, {"head": 4}, "unexpected keyword argument 'head'"),
        ({"weight": np.zeros(3)}, {}, "no vision transformer of transformers, .* has these names: weight"),
        (weights | {"module.cls_token": weights["cls_token"]}, {}, "holds several models: 'cls_token' and 'module.cls_token' both"),
        (weights | {"storage_tokens": np.zeros(3)}, {}, "facebookresearch/dinov3, which are not read"),
        (weights | {"blocks.0.attn.qkv.bias": np.zeros(95)}, {}, r"attn.qkv.bias has the shape \(95,\), which does not divide"),
    ]
    for broken, options, text in cases:
        with pytest.raises(UserError, match=text) as error:
            load_vit(broken, **(TOLD | options))
        assert "\n" not in str(error.value)


def test_what_nothing_tells_must_be_given():
    """timm has models with heads of 64, 80 and 96 features and with images of any shape; DINOv2 has one kind of both."""
    width = 64
    cfg = config(width=width, heads=1, hidden=F, table_rows="patches", mask_token=False)
    timm = to_layout(VitCheckpoint(scrambled(vit.specs(cfg)), cfg, {}, "timm"), "timm")
    with pytest.raises(UserError, match=r"tell heads and grid; give heads=1 and grid=\(3, 3\), if that is right$"):
        load_vit(timm)
    with pytest.raises(UserError, match=r"tell grid; give grid=\(3, 3\), if that is right$"):
        load_vit(timm, heads=2)
    assert load_vit(timm, heads=2, grid=(1, 9)).config.grid == (1, 9)
    with pytest.raises(UserError, match=r"tell grid; give grid=\(ROWS, COLUMNS\)$"):
        load_vit(timm | {"pos_embed": np.zeros((1, 6, width), np.float32)}, heads=1)
    with pytest.raises(UserError, match="tell heads; give heads=NUMBER$"):
        load_vit(facebookresearch())
    cfg = config(width=width, heads=1, hidden=F)
    assert load_vit(to_layout(VitCheckpoint(scrambled(vit.specs(cfg)), cfg, {}, ""), "facebookresearch")).config == replace(
        cfg, layerscale=1e-5)


def test_files_beside_the_weights_are_read(tmp_path):
    """What timm and transformers write: heads, grid, mean and deviation; another model's config is refused."""
    timm = as_timm(facebookresearch())
    tensor_files.write_safetensors(tmp_path / "model.safetensors", timm)
    told = {"pretrained_cfg": {"input_size": [3, 12, 12], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (tmp_path / "config.json").write_text(json.dumps(told | {"model_args": {"num_heads": 2}}))
    found = load_vit(tmp_path / "model.safetensors")
    assert (found.config.heads, found.config.grid, found.mean, found.std) == (2, (3, 3), (0.5,) * 3, (0.25,) * 3)
    assert load_vit(tmp_path, heads=4).config.heads == 4
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "image_size": 12, "hidden_size": D}))
    found = load_vit(tmp_path)
    assert (found.config.heads, found.config.grid, found.mean, found.std) == (4, (3, 3), (0.1, 0.2, 0.3), (1.0,) * 3)
    for text, message in (('{"hidden_size": 48}', "has width=32, but config.json beside it says width=48"), ("[1]", "holds no obj"),
                          ('{"num_attention_heads": "4"}', "heads='4'; it must be a whole number"), ("{", "config.json is damaged"),
                          ('{"image_size": [1, 2, 3, 4]}', "images have the size")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message) as error:
            load_vit(tmp_path, **TOLD)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").unlink()
    for values, message in ((3, "is 3; it must be one number for each channel"), ([0.5], r"are \(0.5,\), but it takes 3 channels")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": values}))
        with pytest.raises(UserError, match=message):
            load_vit(tmp_path, **TOLD)
    assert load_vit(timm, **TOLD).mean is None and load_vit(facebookresearch(), **TOLD).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "model.", "teacher.", "teacher.backbone.", "student.", "encoder.",
                                   "visual.", "my.own."])
def test_prefixes_do_not_matter(front):
    weights = facebookresearch()
    for change in (lambda w: w, lambda w: as_transformers(w, False)):
        wrapped = {front + name: array for name, array in change(weights).items()}
        assert_equal(load_vit(wrapped, **TOLD).params, load_vit(weights, **TOLD).params)


def test_the_teacher_is_preferred_and_projection_heads_are_left_out():
    weights = facebookresearch()
    student = {name: 2 * array for name, array in weights.items()}
    head = {f"{name}.{part}": np.zeros((2, 2), np.float32) for name in ("dino_head", "ibot_head", "head")
            for part in ("mlp.0.weight", "last_layer.weight_v")}
    both = {f"student.backbone.{name}": array for name, array in student.items()}
    both |= {f"teacher.backbone.{name}": array for name, array in weights.items()}
    both |= {f"{part}.{name}": array for part in ("student", "teacher") for name, array in head.items()}
    assert_equal(load_vit(both | {"dino_loss.center": np.zeros((1, 2))}, **TOLD).params, load_vit(weights, **TOLD).params)
    with pytest.raises(UserError, match="holds several models, with names that begin with 'a.' and 'b.'"):
        load_vit({f"{part}.{name}": array for part in "ab" for name, array in weights.items()}, **TOLD)
    compiled = renamed(weights, ("blocks.1.", "blocks.1._orig_mod."), ("attn.", "attn._fsdp_wrapped_module."))
    assert_equal(load_vit(compiled, **TOLD).params, load_vit(weights, **TOLD).params)


@pytest.mark.parametrize("options, layout, text", [
    (dict(attention="kv"), "timm", "no layout has attention='kv'"),
    (dict(qk_norm=True), "transformers", "no place for 'layers.0.norm_k.bias'"),
    (dict(positions="rope"), "timm", "the layout timm has no positions='rope'; dinov3 would"),
    ({}, "dinov3", "the layout dinov3 has no positions='table'; the others would"),
    (dict(table_rows="all"), "facebookresearch", "has no model with table_rows='all' and class_token=True"),
    (dict(interpolation="size_noaa"), "timm", "resizes positions by size_aa, this one by size_noaa"),
    (dict(key_bias=False), "facebookresearch", "no place for 'layers.0.q.bias'"),
    ({}, "torch", "layout='torch' must be one of transformers"),
])
def test_what_a_layout_cannot_say_is_refused(options, layout, text):
    cfg = config(**options)
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), vit.specs(cfg), is_leaf=lambda n: hasattr(n, "axes"))
    with pytest.raises(UserError, match=text):
        to_layout(VitCheckpoint(params, cfg, {}, layout), layout)


# ------------------------------------------------------------------------------------------------------------------- files

def test_safetensors_by_hand(tmp_path):
    """The bytes of the format, put together here: float32, bfloat16 and an empty array."""
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5, -2, 3e30], ml_dtypes.bfloat16)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"},
                         "b": {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30]},
                         "c": {"dtype": "F16", "shape": [0, 4], "data_offsets": [30, 30]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + a.tobytes() + b.tobytes())
    found = tensor_files.read(path)
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"].astype(np.float32), b.astype(np.float32))
    assert found["c"].shape == (0, 4) and found.keys() == {"a", "b", "c"}
    tensor_files.write_safetensors(tmp_path / "y.safetensors", found)
    again = tensor_files.read(tmp_path / "y.safetensors")
    for name, array in found.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_half_precision_is_read_exactly(tmp_path):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in facebookresearch().items()}
    tensor_files.write_safetensors(tmp_path / "half.safetensors", half)
    loaded = load_vit(tmp_path / "half.safetensors", **TOLD)
    assert_equal(loaded.params, load_vit({name: a.astype(np.float32) for name, a in half.items()}, **TOLD).params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}


def test_a_folder_with_the_config_of_transformers(tmp_path):
    names = as_transformers(facebookresearch(), False)
    first = dict(list(names.items())[:5])
    tensor_files.write_safetensors(tmp_path / "model-00001-of-00002.safetensors", first)
    tensor_files.write_safetensors(tmp_path / "model-00002-of-00002.safetensors", without(names, *first))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}))
    loaded = load_vit(tmp_path, grid=(G, G))
    assert (loaded.config.heads, loaded.config.epsilon) == (8, 1e-5)
    assert_equal(loaded.params, load_vit(names, heads=8, grid=(G, G)).params)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "gelu_new"}))
    with pytest.raises(UserError, match="hidden_act='gelu_new'; only 'gelu' can be converted"):
        load_vit(tmp_path, **TOLD)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    tensor_files.write_safetensors(path, facebookresearch())
    whole = path.read_bytes()
    for data, text in ((whole[:-100], "is cut off: its header tells of .* bytes of data, it has"), (b"", "cut off inside its head"),
                       (whole[:50], "cut off inside its header"), (b"\x04" + bytes(7) + b"oops" + whole, "its header is not JSON")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=text):
            load_vit(path, **TOLD)
    with pytest.raises(UserError, match="nowhere.safetensors does not exist"):
        load_vit(tmp_path / "nowhere.safetensors")
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(UserError, match="model.h5 is neither .safetensors nor .pth"):
        load_vit(tmp_path / "model.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no .safetensors file"):
        load_vit(tmp_path / "empty")


# ----------------------------------------------------------------------------------------------------- .pth without torch

class Storage:
    """Stands in for a storage of torch while a pickle is written: `persistent_id` recognises it."""

    def __init__(self, kind: str, key: str, size: int):
        self.record = ("storage", kind, key, "cpu", size)


class Call:
    """Pickles as a call of a global name."""

    def __init__(self, module: str, name: str, *arguments):
        self.module, self.name, self.arguments = module, name, arguments

    def __reduce__(self):
        return Global(self.module, self.name), self.arguments


class Global:
    """A global name that need not exist here."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self, *arguments):
        raise AssertionError("only its name is written")


class Pickler(pickle._Pickler):
    """Writes what torch's does: storages by record, globals by name."""

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind, name, key, place, size = obj.record
        return (kind, Global("torch", name), key, place, size)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            return self.write(f"c{obj.module}\n{obj.name}\n".encode())
        return super().save(obj, save_persistent_id)


def write_pth(path, arrays, wrap=lambda tensors: tensors):
    """A file as torch.save writes it, by hand."""
    tensors, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        storages[str(key)] = array.tobytes()
        steps = tuple(step // array.itemsize for step in array.strides)
        tensors[name] = Call("torch._utils", "_rebuild_tensor_v2", Storage("FloatStorage", str(key), array.size), 0, array.shape,
                             steps, False, Call("collections", "OrderedDict"))
    text = io.BytesIO()
    Pickler(text, 2).dump(wrap(tensors))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def test_pth_is_read_without_torch(tmp_path):
    weights = facebookresearch()
    expected = load_vit(weights, **TOLD).params
    for name, wrap in (("plain", lambda t: t), ("model", lambda t: {"model": t, "epoch": 3})):
        write_pth(tmp_path / f"{name}.pth", weights, wrap)
        assert_equal(load_vit(tmp_path / f"{name}.pth", **TOLD).params, expected)


WRAPPED = {  # what training scripts save: tensors under a key, other things beside them
    "an optimizer and arguments": lambda t: {"state_dict": t, "optimizer": {"state": {0: {"step": 1, "exp_avg": t["norm.bias"]}}},
                                             "args": Call("argparse", "Namespace"), "best": Call("numpy", "float64", 0.5)},
    "a parameter": lambda t: {"model": t | {"norm.bias": Call("torch._utils", "_rebuild_parameter", t["norm.bias"], True, None)}},
    "a dict in a dict": lambda t: {"epoch": 3, "model": {"state_dict": t}},
    "a teacher": lambda t: {"student": {"cls_token": t["norm.bias"]}, "teacher": t},
    "an average": lambda t: {"model": {"cls_token": t["norm.bias"]}, "model_ema": t},
    "I-JEPA": lambda t: {"encoder": {"cls_token": t["norm.bias"]}, "target_encoder": t},
    "DeepSpeed": lambda t: {"module": t, "global_steps": 7},
    "an empty average": lambda t: {"ema": {}, "model": t},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_weights_of_a_training_script_are_read(kind, tmp_path):
    write_pth(tmp_path / "x.pth", facebookresearch(), WRAPPED[kind])
    assert_equal(tensor_files.read(tmp_path / "x.pth"), facebookresearch())


def test_pth_runs_no_code(tmp_path):
    """Whatever a pickle names is not called, alone and beside tensors."""
    path, touched = tmp_path / "evil.pth", tmp_path / "touched"
    evil = [Call("os", "system", f"touch {touched}"), Call("builtins", "eval", f"open({str(touched)!r}, 'w')"),
            Call("pathlib", "Path.touch", touched), Call("torch._tensor", "_rebuild_from_type_v2", Global("os", "system"), None,
                                                         (f"touch {touched}",), None)]
    write_pth(path, {"a": np.ones(2, np.float32)}, wrap=lambda t: {"model": t, "evil": evil})
    np.testing.assert_array_equal(tensor_files.read(path)["a"], np.ones(2))
    for content in (evil[0], {"epoch": 3, "evil": evil}, evil):
        write_pth(path, {}, wrap=lambda _, content=content: content)
        with pytest.raises(UserError, match="holds no state dict: .*; it holds objects such as os.system, which are not loaded"):
            load_vit(path)
    assert not touched.exists()
    write_pth(path, {}, wrap=lambda _: {"epoch": 3})
    with pytest.raises(UserError, match="holds no state dict"):
        load_vit(path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match="cut off, or written by a torch before 1.6"):
        load_vit(path)


@pytest.mark.parametrize("offset, shape, stride, text", [
    (2, (4,), (1,), "beyond its storage of 4 numbers"), (4, (1,), (1,), "beyond its storage"),
    (0, (2, 2), (-1000, 1000), "must be whole numbers of at least 0"), (3, (4,), (-1,), "must be whole numbers"),
    (-1, (2,), (1,), "must be whole numbers"), (0, (-2,), (1,), "must be whole numbers"), (0, (2.0,), (1,), "must be whole"),
    (0, (2**40,), (0,), "beyond its storage"), (0, (5,), (0,), "beyond its storage"),
    (0, (2, 2), (1,), "must be whole numbers"), (0, (2**63, 2), (2**62, 1), "beyond its storage"),
])
def test_a_tensor_beyond_its_storage_is_refused(offset, shape, stride, text, tmp_path):
    path = tmp_path / "beyond.pth"
    bad = Call("torch._utils", "_rebuild_tensor_v2", Storage("FloatStorage", "0", 4), offset, shape, stride, False,
               Call("collections", "OrderedDict"))
    write_pth(path, {"a": np.zeros(4, np.float32)}, wrap=lambda _: {"a": bad})
    with pytest.raises(UserError, match=text) as error:
        tensor_files.read(path)
    assert "\n" not in str(error.value)


def test_views_of_a_storage_are_read(tmp_path):
    """Offsets, transposes and empty tensors, as torch saves them."""
    data = np.arange(12, dtype=np.float32)
    view = lambda *place: Call("torch._utils", "_rebuild_tensor_v2", Storage("FloatStorage", "0", 12), *place, False,
                               Call("collections", "OrderedDict"))
    write_pth(tmp_path / "x.pth", {"a": data}, wrap=lambda _: {
        "part": view(4, (2, 3), (3, 1)), "transposed": view(0, (4, 3), (1, 4)), "one": view(11, (), ()),
        "none": view(0, (0, 3), (3, 1))})
    found = tensor_files.read(tmp_path / "x.pth")
    np.testing.assert_array_equal(found["part"], data[4:10].reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], data.reshape(3, 4).T)
    assert found["one"] == 11 and found["none"].shape == (0, 3)


# ------------------------------------------------------------------------------------------------- folders and bad headers

def write_parts(folder, parts, index=None):
    folder.mkdir()
    for file, names in parts.items():
        tensor_files.write_safetensors(folder / file, {name: np.full(2, n, np.float32) for n, name in enumerate(names)})
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


ONE, TWO = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.mark.parametrize("parts, index, text", [
    ({ONE: "ab", TWO: "c"}, None, None), ({ONE: "ab", TWO: "c"}, {"a": ONE, "b": ONE, "c": TWO}, None),
    ({ONE: "ab", TWO: "b"}, None, f"{ONE} and {TWO} both hold 'b'"), ({ONE: "ab"}, None, f"lacks {TWO}, a part of the model"),
    ({"model.safetensors": "a", "model_1.safetensors": "b"}, None, "several models: model_1.safetensors is no part of model.safe"),
    ({ONE: "a", TWO: "b", "old.safetensors": "c"}, {"a": ONE, "b": TWO}, f"old.safetensors is no part of {ONE}"),
    ({ONE: "a"}, {"a": ONE, "b": TWO}, f"lacks {TWO}, a part of the model"),
    ({ONE: "a", TWO: "b"}, {"a": ONE, "b": TWO, "c": TWO}, f"says that 'c' is in {TWO}; it is in none of them"),
    ({ONE: "a", TWO: "bc"}, {"a": ONE, "b": TWO}, f"says that 'c' is in no file; it is in {TWO}"),
    ({ONE: "a"}, {"a": "../x.safetensors"}, 'must have a "weight_map" from names of arrays to names of files beside it'),
])
def test_a_folder_holds_one_model(parts, index, text, tmp_path):
    folder = write_parts(tmp_path / "model", parts, index)
    if text is None:
        assert tensor_files.read(folder).keys() == {"a", "b", "c"}
        return
    with pytest.raises(UserError, match=text):
        tensor_files.read(folder)


def header_file(path, text: str, data: bytes = bytes(8)):
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + data)
    return path


@pytest.mark.parametrize("header, text", [
    ("[]", "its header is no object"), ("[" * 100_000, "its header is not JSON"), ('{"a": 1}', "entry of 'a' must have a dtype"),
    ('{"a": {"dtype": "F32", "shape": [2]}}', "must have a dtype, a shape and two data_offsets"),
    ('{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', "must have a dtype"),
    ('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "none negative"),
    ('{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}', "must have a dtype"),
    ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', "none negative"),
    ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', "cannot have -8 bytes"),
    ('{"a": {"dtype": "F8", "shape": [8], "data_offsets": [0, 8]}}', "has the dtype F8; known are F64"),
    ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "'a' begins at byte 4 of the data, the array before ends"),
    ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}',
     "'b' begins at byte 0 of the data"),
    ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "has 4 bytes behind its last array"),
    ('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}', "is cut off: its header tells of 12 bytes of data, it"),
    ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}', "its header has a name twice"),
])
def test_malformed_headers_are_one_line(header, text, tmp_path):
    with pytest.raises(UserError, match=text) as error:
        tensor_files.read(header_file(tmp_path / "x.safetensors", header))
    assert "\n" not in str(error.value)
