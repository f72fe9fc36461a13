"""Holds what is read of a compiled program to texts by hand and to programs of known traffic."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seg_jax.models.parallel import sharding
from seg_jax.training import hlo

TEXT = """\
HloModule jit_step

%fused (p: bf16[8,4]) -> (bf16[8,4], bf16[32,4]) {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[32,4]{1,0} all-gather(%p), channel_id=3, replica_groups=MESH, dimensions={0}
  ROOT %t = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) tuple(%p, %all-gather.1)
}

%done (p: bf16[8,4]) -> bf16[32,4] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[32,4] all-gather(%p.1),channel_id=3, replica_groups=MESH, dimensions={0}
}

%inner_body (s: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%s), index=1
  %all-reduce.7 = f32[16]{0} all-reduce(%x), channel_id=5, replica_groups=[2,4]<=[8], to_apply=%add
  %k.3 = f32[16]{0} custom-call(%all-reduce.7), custom_call_target="tpu_custom_call"
  ROOT %r = (s32[], f32[16]{0}) tuple(%s, %k.3)
}

%inner_condition (s: (s32[], f32[16])) -> pred[] {
  %c.1 = s32[]{:T(128)} constant(1)
  %c.5 = s32[]{:T(128)} constant(5)
  %big = s32[]{:T(128)} constant(99)
  %i = s32[] get-tuple-element(%s.1), index=0
  %next = s32[] add(%i, %c.1)
  ROOT %lt = pred[]{:T(512)} compare(%next, %c.5), direction=LT
}

%body (s: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s.2 = (s32[], f32[16]{0}) parameter(0)
  %start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) fusion(%q), kind=kCustom, calls=%fused
  %end = bf16[32,4]{1,0} fusion(%start), kind=kCustom, calls=%done
  ROOT %while.1 = (s32[], f32[16]{0}) while(%s.2), condition=%inner_condition, body=%inner_body
}

%condition (s: (s32[], f32[16])) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

%one (x: f32[8]) -> f32[8] {
  ROOT %permuted = f32[8]{0} collective-permute(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
}

%other (x: f32[8]) -> f32[8] {
  ROOT %same = f32[8]{0} copy(%x)
}

ENTRY %main (a: f32[16], b: /*index=1*/f32[8]) -> f32[16] {
  %w = (s32[], f32[16]{0}) while(%a), condition=%condition, body=%body, KNOWN
  %unknown = (s32[], f32[16]{0}) while(%a), condition=%condition, body=%other
  %branch = f32[8]{0} conditional(%p, %b, %b), branch_computations={%one, %other}
  %cut = f32[2]{0} reduce-scatter(%b), channel_id=11, replica_groups={{0,1,2,3}}, dimensions={0}
  %there = f32[8]{0} all-to-all(%b), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %back = f32[4]{0} all-to-all(%there), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  %gone = (f32[8]{0}, f32[16]{0}) all-gather-start(%b), channel_id=12, replica_groups={{0,1}}
  %came = f32[16]{0} all-gather-done(%gone)
  %nothing = f32[8]{0} custom-call(%b), custom_call_target="AllocateBuffer"
}
"""
TEXT = TEXT.replace("MESH", "mesh['a'=4,'b'=2] {'a'}")
TEXT = TEXT.replace("KNOWN", 'backend_config={"known_trip_count":{"n":"3"}}')


def test_loops_multiply_what_is_in_them_and_a_collective_counts_once():
    told = hlo.read_text(TEXT)
    gathered, small = 32 * 4 * 2, 16 * 4
    assert told.collectives == {
        # Written twice in the outer loop, once in its start and once in its end; one at top.
        "all-gather": hlo.Traffic(3 + 1, 3 * gathered + small, 3 * gathered * 3 // 4 + small // 2),
        "all-reduce": hlo.Traffic(15, 15 * small, 2 * 15 * small * 3 // 4),
        # Two of one channel.
        "all-to-all": hlo.Traffic(2, 32 + 16, 24 + 8),
        "collective-permute": hlo.Traffic(1, 32, 32),
        "reduce-scatter": hlo.Traffic(1, 32, 24),
    }
    assert told.loops == [
        hlo.Loop("w", 3, 1),
        hlo.Loop("while.1", 5, 3),
        hlo.Loop("unknown", None, 1),
    ]
    assert told.kernels == {"tpu_custom_call k": 15}
    with pytest.raises(ValueError, match="with an ENTRY, got none"):
        hlo.read_text("no program")


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,16]<=[8,8]T(1,0)", 16),
        ("replica_groups=mesh['x'=4,'y'=8] {'x','y'}", 32),
        ("replica_groups=mesh['x'=4,'y'=8] {'y':(2)4}", 4),
        ("dimensions={0}", None),
    ],
)
def test_groups_are_told_in_many_ways(told, size):
    assert hlo._group_size(f"%x), channel_id=1, {told}") == size


@pytest.fixture(scope="module")
def looped():
    """A step that gathers weights [8 64 32] layer by layer and adds up over eight devices."""
    mesh = sharding.mesh({"fsdp": 8})
    places = {
        "w": NamedSharding(mesh, PartitionSpec(None, "fsdp")),
        "x": NamedSharding(mesh, PartitionSpec("fsdp")),
    }
    shapes = {"w": (6, 64, 64), "x": (16, 64)}
    arguments = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=places[name])
        for name, shape in shapes.items()
    }

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(places["w"], None))
    def step(w, x):
        def local(w, x):
            def body(x, kernel):
                whole = jax.lax.all_gather(kernel, "fsdp", tiled=True)
                return jnp.tanh(x @ whole), None

            x, _ = jax.lax.scan(body, x, w)
            return jax.lax.psum(x.sum(), "fsdp")

        specs = (PartitionSpec(None, "fsdp"), PartitionSpec("fsdp"))
        total = jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )(w, x)
        return w * total, total

    lowered = step.lower(*arguments.values())
    return lowered, hlo.compile(lowered, ()), tuple(arguments.values())


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_a_real_program_tells_its_traffic_and_its_memory(looped):
    lowered, compiled, arguments = looped
    told = hlo.read_text(compiled.as_text())
    kernel = 64 * 64 * 4
    assert told.collectives["all-gather"] == hlo.Traffic(6, 6 * kernel, 6 * kernel * 7 // 8)
    assert told.collectives["all-reduce"].times == 1
    assert [loop.trips for loop in told.loops if loop.trips != 1] == [6]
    memory = hlo.memory(compiled, lowered, arguments)
    weights, rows = 6 * 8 * 64 * 4, 2 * 64 * 4
    assert hlo.device_bytes(arguments) == memory.arguments == weights + rows
    assert memory.donated == memory.aliased == weights
    assert memory.total == memory.arguments + memory.outputs - weights + memory.temporary


class Refusing:
    """A lowered program that no compiler takes."""

    def __init__(self, complaint):
        self.complaint = complaint

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.complaint)


def test_too_little_memory_is_a_verdict_and_other_errors_are_errors():
    complaint = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 17.05G of 15.75G hbm. Exceeded hbm capacity by 1.30G."
    )
    with pytest.raises(hlo.TooLarge) as error:
        hlo.compile(Refusing(complaint), ())
    assert error.value.needed == round(17.05 * 2**30)
    assert error.value.available == round(15.75 * 2**30)
    early = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.16G) exceeds available HBM (15.75G)."
    )
    cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    given = jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=cpu)
    with pytest.raises(hlo.TooLarge) as error:
        hlo.compile(Refusing(early), given)
    assert error.value.needed == round(18.16 * 2**30) + 4096
    vmem = complaint.replace("hbm", "vmem")
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        hlo.compile(Refusing(vmem), ())
