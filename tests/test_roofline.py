"""Counts of compiled programs against counts by hand: products, loops in loops, traffic, and the roofline."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import toy_run

from memtok_jax.training import cli, compile_only, hlo, roofline
from memtok_jax.training.chips import CHIPS, Chip

M, K, N = 48, 32, 16
PRODUCT = 2 * M * K * K
F32 = jnp.float32


def cost(f, *shapes) -> roofline.Cost:
    arguments = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes]
    return roofline.cost_of(hlo.parse(jax.jit(f).lower(*arguments).compile().as_text()))


def test_a_product():
    """Two operations for each of M K N terms; both factors are read and the result is written."""
    found = cost(jnp.matmul, (M, K), (K, N))
    assert found.products == found.passes == 2 * M * K * N and found.unknown == 0
    assert found.bytes == 4 * (M * K + K * N + M * N)
    assert found.intensity == found.products / found.bytes


def test_a_batch_of_products():
    found = cost(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, M, K), (5, K, N))
    assert found.products == 5 * 2 * M * K * N


def step(x, w):
    return jnp.tanh(x @ w), None


def scan(x, w_LKK):
    return jax.lax.scan(step, x, w_LKK)[0]


def test_a_scan_counts_its_body_as_often_as_it_runs():
    """Of the stacked factors each iteration reads one slice, not all of them."""
    one, many = (cost(scan, (M, K), (layers, K, K)) for layers in (3, 30))
    assert one.products == 3 * PRODUCT and many.products == 30 * PRODUCT
    assert many.others / one.others == pytest.approx(10, rel=0.05)
    # Once M x K in and out, and 30 times: a slice read (perhaps copied: two more times), and M x K a few times.
    least, most = 30 * 4 * K * K, 30 * 4 * (3 * K * K + 6 * M * K) + 4 * 8 * M * K
    assert least < many.bytes < most < 30 * 4 * 30 * K * K


def test_a_scan_that_stacks_its_results_writes_each_once():
    found = cost(lambda x, w: jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), x), x, None, length=64)[1], (M, K), (K, K))
    assert found.products == 64 * PRODUCT
    assert found.bytes < 64 * 4 * (K * K + 10 * M * K) < 64 * 64 * 4 * M * K


def test_a_scan_in_a_scan():
    """12 times 5 products inside, and 12 outside."""
    def outer(x, w_LKK):
        return jax.lax.scan(lambda x, _: (scan(x, w_LKK) @ w_LKK[0], None), x, None, length=12)[0]

    assert cost(outer, (M, K), (5, K, K)).products == 12 * 6 * PRODUCT


def test_a_while_with_known_trips():
    """From 4 to below 25 in steps of 3: 7 times."""
    def f(x, w):
        return jax.lax.while_loop(lambda c: c[0] < 25, lambda c: (c[0] + 3, c[1] @ w), (jnp.int32(4), x))[1]

    found = cost(f, (M, K), (K, K))
    assert found.products == 7 * PRODUCT and found.unknown == 0


def test_a_while_of_unknown_length_is_named():
    def f(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ w, x)

    found = cost(f, (M, K), (K, K))
    assert found.products == PRODUCT and found.unknown == 1


def test_a_gradient_costs_twice_the_forward_pass_more():
    found = cost(jax.grad(lambda w, x: scan(x, w).sum(), argnums=(0, 1)), (7, K, K), (M, K))
    assert found.products == 3 * 7 * PRODUCT


def test_of_branches_the_dearest_counts():
    def f(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: scan(x, jnp.broadcast_to(w, (9, K, K))), lambda: x @ w)

    assert cost(f, (M, K), (K, K)).products == 9 * PRODUCT


TPU = """HloModule one

%fused (p.0: f32[12,64,256], p.1: s32[]) -> f32[64,256] {
  %p.0 = f32[12,64,256]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %part = f32[1,64,256]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,64,256}
  ROOT %flat = f32[64,256]{1,0:T(8,128)} bitcast(%part)
}

%next (i: s32[]) -> s32[] {
  %i = s32[]{:T(128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  ROOT %sum = s32[]{:T(128)} add(%i, %one)
}

%body (c: (s32[], f32[12,64,256], s32[])) -> (s32[], f32[12,64,256], s32[]) {
  %c = (s32[]{:T(128)}, f32[12,64,256]{2,1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%c), index=0
  %w = f32[12,64,256]{2,1,0:T(8,128)} get-tuple-element(%c), index=1
  %end = s32[]{:T(128)} get-tuple-element(%c), index=2
  %slice = f32[64,256]{1,0:T(8,128)S(1)} fusion(%w, %n), kind=kLoop, calls=%fused
  %product = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} convolution(%slice, %slice), dim_labels=bf_oi->bf, operand_precision={highest}
  %more = s32[]{:T(128)} fusion(%n), kind=kLoop, calls=%next
  ROOT %out = (s32[]{:T(128)}, f32[12,64,256]{2,1,0:T(8,128)}, s32[]{:T(128)}) tuple(%more, %w, %end)
}

%test (c: (s32[], f32[12,64,256], s32[])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[12,64,256]{2,1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%c), index=0
  %end = s32[]{:T(128)} get-tuple-element(%c), index=2
  ROOT %less = pred[]{:T(512)} compare(%n, %end), direction=LT
}

ENTRY %main (w: f32[12,64,256]) -> f32[12,64,256] {
  %w = f32[12,64,256]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %end = s32[]{:T(128)} constant(12)
  %start = (s32[]{:T(128)}, f32[12,64,256]{2,1,0:T(8,128)}, s32[]{:T(128)}) tuple(%zero, %w, %end)
  %loop = (s32[]{:T(128)}, f32[12,64,256]{2,1,0:T(8,128)}, s32[]{:T(128)}) while(%start), condition=%test, body=%body
  ROOT %same = f32[12,64,256]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_the_text_of_a_tpu_program():
    """No note of the trips, a bound in the tuple, products as convolutions, slices in fusions, and a memory beside the cores."""
    found = roofline.cost_of(hlo.parse(TPU))
    assert found.products == 12 * 2 * 64 * 64 * 256 and found.passes == 6 * found.products
    slices, counters = 12 * 4 * 64 * 256, 12 * (4 + 2 * 4 + 8 + 1)
    assert found.bytes == pytest.approx(slices, abs=counters) and found.unknown == 0


def test_products_with_a_batch_are_convolutions_with_gaps():
    """A batch of 6 products of [16, 32] and [32, 8]: each output meets one of six taps."""
    comp = hlo.parse("""ENTRY %main (a: f32[6,16,32], b: f32[6,32,8]) -> f32[6,16,8] {
  %a = f32[6,16,32]{2,1,0} parameter(0)
  %b = f32[6,32,8]{2,1,0} parameter(1)
  ROOT %c = f32[6,16,8]{2,1,0} convolution(%a, %b), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
""").computations["main"]
    assert roofline.products(comp, comp.root) == 6 * 2 * 16 * 32 * 8


def test_a_collective_in_steps_is_one():
    """The second fusion goes on with what the first began: both name channel 7. """
    step = """%step.N (p: f32[4,8]) -> f32[32,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %g.N = f32[32,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

"""
    found = roofline.cost_of(hlo.parse("".join(step.replace("N", n) for n in "12") + """ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %one = f32[32,8]{1,0} fusion(%a), kind=kCustom, calls=%step.1
  %two = f32[32,8]{1,0} fusion(%a), kind=kCustom, calls=%step.2
  ROOT %sum = f32[4,8]{1,0} all-reduce(%a), channel_id=8
}
"""))
    assert found.collectives == {"all-gather": 1, "all-reduce": 1} and found.sent == 4 * (32 * 8 + 4 * 8)


def test_tiles_pad_what_lies_in_memory():
    one, = hlo.arrays("bf16[3,100,48]{2,1,0:T(8,128)(2,1)S(1)}")
    assert (one.elements, one.padded, one.bytes, one.main) == (3 * 100 * 48, 3 * 104 * 128, 2 * 3 * 104 * 128, False)
    assert [a.bytes for a in hlo.arrays("(s32[], pred[7]{0}, f8e4m3fn[4], u8[2], f64[2], c64[1])")] == [4, 7, 4, 2, 16, 8]


def test_the_larger_side_bounds():
    one = roofline.Cost(products=10.0, passes=60.0, bytes=40.0)
    assert roofline.seconds(one, Chip(operations=20.0, bandwidth=8.0, memory=1.0)) == (3.0, 5.0)
    assert all(chip.operations / chip.bandwidth > 100 for chip in CHIPS.values())


def test_compile_only_counts_an_update(capsys):
    exp = toy_run.experiment("task:recall", "training.batch=8", "evaluation.batch=8", "training.data=2")
    assert cli.compile_only(exp, "cpu:2") == 0
    out = capsys.readouterr().out
    assert "per chip and update:" in out and "operations a byte" in out and "unknown length" not in out
    assert "collectives of an update:" in out and "roofline" not in out, "of a CPU no peak is known"


@pytest.mark.tpu_backend
@pytest.mark.slow
def test_a_program_for_a_tpu(capsys, monkeypatch):
    """Its compiler notes no trips and turns products into convolutions: a scan in a scan is counted as by hand all the same."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # libtpu ends the process at a flag of another compiler
    from memtok_jax.training.compile_only import _target_mesh

    def outer(x, w_LKK):
        return jax.lax.scan(lambda x, _: (scan(x, w_LKK) @ w_LKK[0], None), x, None, length=12)[0]

    mesh = _target_mesh("v5e:2x2", 4, 1, 1)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in ((256, 128), (5, 128, 128))]
    found = roofline.cost_of(hlo.parse(jax.jit(outer).lower(*shapes).compile().as_text()))
    assert found.products == 12 * 6 * 2 * 256 * 128 * 128 and found.unknown == 0
    exp = toy_run.experiment("task:recall", "training.batch=8", "evaluation.batch=8", "training.data=4")
    assert cli.compile_only(exp, "v5e:2x2") == 0
    out = capsys.readouterr().out
    assert "roofline of v5e (197 T operations and 819.00 GB a second)" in out and "bound by" in out and "unknown length" not in out


def test_the_fast_memory_of_kernels():
    """Only calls of kernels count, each with what its own line says."""
    call = ('  %k = f32[8]{{0}} custom-call(%a), custom_call_target="{}", backend_config={{"custom_call_config":{{}},'
            '"used_scoped_memory_configs":[{{"memory_space":"1","offset":"0","size":"{}"}}]}}')
    text = "\n".join([call.format("tpu_custom_call", 1300), call.format("Sharding", 7), call.format("tpu_custom_call", 2200)])
    assert hlo.kernel_memory(text) == [1300, 2200]
    assert compile_only._kernels([1300, 2_200_000]) == ["2 kernels; the largest takes 2.20 MB of a chip's fast memory"]
    assert compile_only._kernels([]) == []
