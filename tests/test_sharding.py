"""Rules, constraints and meshes: what is divided, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from memtok_jax import params as pr
from memtok_jax import sharding


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((3, 5))
    assert sharding.constrain(x, "batch", "embed") is x


def test_constrain_divides_rows_and_heads():
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x * 2, "batch", None, "heads"))(jnp.ones((4, 3, 2)))
    assert y.sharding.spec == P(("data", "fsdp"), None, "tensor")


def test_constrain_is_the_identity_inside_shard_map():
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        f = jax.shard_map(lambda x: sharding.constrain(x, "batch", None) + 1, in_specs=P(("data", "fsdp")),
                          out_specs=P(("data", "fsdp")))
        assert jnp.array_equal(jax.jit(f)(jnp.zeros((4, 3))), jnp.ones((4, 3)))


def test_uneven_dimension_names_both_numbers():
    with jax.set_mesh(sharding.make_mesh(1, 1, 8)), pytest.raises(ValueError, match="'heads' of size 6 .* into 8 "):
        jax.jit(lambda x: sharding.constrain(x, "batch", "heads"))(jnp.ones((8, 6)))


def test_wrong_number_of_names():
    with pytest.raises(ValueError, match="2 dimensions, got 1"):
        sharding.constrain(jnp.ones((2, 2)), "batch")


def test_unknown_axis_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown logical axis 'head'.*did you mean 'heads'"):
        sharding.mesh_axes_of(("head", None))


def test_collision_names_the_parameter():
    specs = {"w": pr.ParamSpec((8, 8), ("heads", "mlp"), pr.zeros)}
    with pytest.raises(ValueError, match=r"\['w'\].*two dimensions on mesh axis 'tensor'"):
        sharding.shardings(sharding.make_mesh(2, 2, 2), specs)


def test_shardings_of_parameters_and_carries():
    mesh = sharding.make_mesh(2, 2, 2)
    one = {"w": pr.ParamSpec((8, 4), ("embed", "heads"), pr.zeros), "s": (), "b": pr.ParamSpec((), (), pr.zeros)}
    specs = pr.stack(one, 3)
    out = sharding.shardings(mesh, specs)
    assert out["w"].spec == P(None, "fsdp", "tensor") and out["b"].spec == P(None) and out["s"] == ()
    state = sharding.shardings(mesh, pr.StateSpec((3, 4, 2, 8), ("layers", "batch", "heads", "embed")))
    assert state.spec == P(None, ("data", "fsdp"), "tensor", None), "rows own fsdp, so the width stays whole"


@pytest.mark.parametrize("sizes, message", [
    ((3, 3, 1), "= 9 devices, but there are 8"), ((-1, 3, 1), "8 devices do not divide"),
    ((0, 1, 1), "data is 0"), ((1, 0, 1), "fsdp is 0")])
def test_mesh_that_does_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(*sizes)


def test_mesh_takes_what_is_left():
    assert dict(sharding.make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.row_groups(sharding.make_mesh(2, 2, 2)) == 4
