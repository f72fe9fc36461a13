"""Muon's direction: momentum made orthogonal, each whole matrix on one device of the mesh.

Newton-Schulz multiplies a matrix by itself fifteen times. On matrices that lie in pieces each
product would speak to all other pieces; so the devices first trade pieces until each has matrices
of its own, work alone, and trade back: twice the update in 16 bits, whatever the number of devices.

Source: Muon, Jordan et al. 2024; Moonlight, arXiv 2502.16982, section 2.3 (gathers, instead of
trading, and one matrix after another).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from seg_jax.models.parallel import mesh_axes
from seg_jax.records import Array

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024, also torch.optim.Muon)."""
MOST_NUMBERS = 2**26
"""Numbers in the matrices that a device of many works on at once."""


class MuonState(NamedTuple):
    """Momentum of every matrix."""

    momentum: optax.Updates


def scale_by_muon(*, momentum: float, steps: int, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Returns Nesterov momentum orthogonalised by Newton-Schulz, scaled to AdamW's update RMS.

    Axes before the last two are stacks (layers, experts): each matrix is its own. Inside
    `jax.set_mesh` of several devices, gradients must lie as `sharding.shardings` lays weights.
    Differs: optax.contrib.muon keeps a bias-corrected average, runs in the gradient's dtype, and
    leaves products of divided matrices to the compiler.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        buffer = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: g + momentum * m, buffer, updates)

        def flat(matrices: Array) -> Array:
            return orthogonalise(matrices, steps=steps, dtype=dtype)

        def scaled(ahead: Array, flat: Array) -> Array:
            return 0.2 * max(ahead.shape[-2:]) ** 0.5 * flat.astype(ahead.dtype)

        return jax.tree.map(scaled, ahead, apply_to_whole_matrices(flat, ahead, dtype)), MuonState(
            buffer
        )

    return optax.GradientTransformation(init, update)


def orthogonalise(
    matrix: Float[Array, "*stack rows columns"], *, steps: int, dtype: jnp.dtype
) -> Float[Array, "*stack rows columns"]:
    """Returns nearly the closest semi-orthogonal matrix, singular values about 0.7 to 1.2.

    Products are of numbers in `dtype`, which the result has; they add up, and coefficients are, in
    float32. The result does not depend on the scale of the matrix.
    Differs: torch.optim.Muon leaves matrices of a norm below 1e-7 smaller.

    Source: quintic Newton-Schulz iteration X <- a X + (b A + c A A) X with A = X X^T.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (jnp.swapaxes(matrix, -1, -2) if tall else matrix).astype(jnp.float32)
    # Squares of small numbers would be 0, and of large ones infinite.
    largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
    x = (x / jnp.maximum(norm, 1.0)).astype(dtype)

    def product(form: str, left: Array, right: Array) -> Array:
        return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)

    for _ in range(steps):
        # Both terms of one rounded matrix: around singular values of 1 its rounding cancels.
        gram = product("...mk,...nk->...mn", x, x).astype(dtype)
        square = product("...mk,...kn->...mn", gram, gram)
        poly = (b * gram.astype(jnp.float32) + c * square).astype(dtype)
        x = (a * x.astype(jnp.float32) + product("...mk,...kn->...mn", poly, x)).astype(dtype)
    return jnp.swapaxes(x, -1, -2) if tall else x


def apply_to_whole_matrices(function: Callable[[Array], Array], tree: Any, dtype: jnp.dtype) -> Any:
    """Returns function(matrices [.. rows columns]) of every leaf, in the dtype of its results.

    Args:
      function: of stacks of wide matrices; it must commute with turning a matrix around.
      tree: stacks of matrices, known by their paths to the table of axes.
      dtype: that the matrices travel in.
    """
    on = jax.sharding.get_abstract_mesh()
    if on.empty or on.size == 1 or not set(mesh_axes.AXES) <= set(on.axis_names):
        return jax.tree.map(function, tree)
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in found]
    specs = tuple(mesh_axes.partition(mesh_axes.names_of(path), leaf.shape) for path, leaf in found)
    turned, parties = _groups(leaves, specs, on)

    def mine(*parts: Array) -> tuple[Array, ...]:
        out = list(parts)
        for lying, members in parties:
            pieces = [_transpose_if(parts[at].astype(dtype), turned[at]) for at in members]
            stacks = [piece.reshape(-1, *piece.shape[-2:]) for piece in pieces]
            ends = [sum(len(stack) for stack in stacks[: i + 1]) for i in range(len(stacks) - 1)]
            done = _apply_traded(function, jnp.concatenate(stacks), lying=lying, on=on)
            for at, piece, flat in zip(members, pieces, jnp.split(done, ends), strict=True):
                out[at] = _transpose_if(flat.reshape(piece.shape), turned[at])
        return tuple(out)

    spread = jax.shard_map(mine, in_specs=specs, out_specs=specs, check_vma=False)
    return jax.tree.unflatten(structure, spread(*leaves))


class _Division(NamedTuple):
    """How wide matrices of one shape lie on the mesh."""

    size: tuple[int, int]
    rows: tuple[str, ...]
    """Axes of the mesh, larger than one, that rows are divided among."""
    columns: tuple[str, ...]


def _division(
    shape: tuple[int, ...], spec: PartitionSpec, on: AbstractMesh
) -> tuple[_Division, bool]:
    """Returns how matrices lie once they are wide, and whether they must be turned for that."""
    (rows, columns), (down, along) = shape[-2:], (_axes(axes, on) for axes in spec[-2:])
    # Square ones have a choice; they come to lie as most others do.
    turned = rows > columns or (rows == columns and _order(down) > _order(along))
    if turned:
        return _Division((columns, rows), along, down), True
    return _Division((rows, columns), down, along), False


def _groups(
    leaves: list[Array], specs: tuple[PartitionSpec, ...], on: AbstractMesh
) -> tuple[list[bool], list[tuple[_Division, list[int]]]]:
    """Returns which leaves are to be turned around, and those that travel together.

    Matrices of one shape that are divided alike (q and o, gate and up and down) share a journey
    where that leaves fewer devices idle: 28 matrices keep 28 devices of 256 busy, and 84 keep 84.
    Where it does not, memory is saved.
    """
    turned: list[bool] = []
    parties: list[tuple[_Division, list[int]]] = []
    loads: dict[_Division, tuple[list[int], int]] = {}
    for at, (leaf, spec) in enumerate(zip(leaves, specs, strict=True)):
        lying, turn = _division(leaf.shape, spec, on)
        turned.append(turn)
        devices = math.prod(on.shape[axis] for axis in (*lying.rows, *lying.columns))
        count = math.prod(NamedSharding(on, spec).shard_shape(leaf.shape)[:-2])
        party, before = loads.get(lying, ([], 0))
        if party and -(-(before + count) // devices) < -(-before // devices) + -(-count // devices):
            party.append(at)
            loads[lying] = party, before + count
        else:
            loads[lying] = [at], count
            parties.append((lying, loads[lying][0]))
    return turned, parties


def _axes(axes: Any, on: AbstractMesh) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if on.shape[axis] > 1)


def _order(axes: tuple[str, ...]) -> list[int]:
    return [mesh_axes.AXES.index(axis) for axis in axes]


def _transpose_if(x: Array, turned: bool) -> Array:
    return jnp.swapaxes(x, -1, -2) if turned else x


def _apply_traded(
    function: Callable[[Array], Array],
    pieces: Float[Array, "count rows columns"],
    *,
    lying: _Division,
    on: AbstractMesh,
) -> Float[Array, "count rows columns"]:
    """Returns this device's pieces of function(whole matrices), inside `shard_map`.

    One axis of the mesh at a time, its devices trade pieces of all their matrices for more of
    each of a part of them. When there are no more matrices than devices that have their own, the
    devices of the axes left all get the same ones.
    """
    count, shared = pieces.shape[0], 1
    moves: list[tuple[str, int, bool]] = []
    for dim, axes in ((2, lying.columns), (1, lying.rows)):
        for axis in reversed(axes):  # The last axis of a product counts fastest.
            moves.append((axis, dim, count > shared))
            shared *= on.shape[axis] if count > shared else 1
    x = jnp.pad(pieces, ((0, -count % shared), (0, 0), (0, 0)))
    for axis, dim, trades in moves:
        if trades:
            x = jax.lax.all_to_all(_opaque_on_cpu(x, axis), axis, 0, dim, tiled=True)
        else:
            x = jax.lax.all_gather(x, axis, axis=dim, tiled=True)
    x = _apply_in_batches(function, x)
    for axis, dim, trades in reversed(moves):
        if trades:
            x = jax.lax.all_to_all(_opaque_on_cpu(x, axis), axis, dim, 0, tiled=True)
        else:
            size = x.shape[dim] // on.shape[axis]
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, dim)
    return x[:count]


def _opaque_on_cpu(x: Array, axis: str) -> Array:
    """Returns x; on a CPU as an array that no pass knows the parts of.

    XLA's pieces for each device would come from different parts there, turned and not turned, and
    it refuses to trade pieces that are not laid out alike.
    """

    def opaque(x: Array) -> Array:
        return jnp.where(jax.lax.axis_index(axis) != -1, x, 0)

    return jax.lax.platform_dependent(x, cpu=opaque, default=lambda x: x)


def _apply_in_batches(
    function: Callable[[Array], Array], x: Float[Array, "count rows columns"]
) -> Float[Array, "count rows columns"]:
    """Returns the function of the matrices, as many at once as `MOST_NUMBERS` allows."""
    count, *size = x.shape
    together = max(1, min(count, MOST_NUMBERS // math.prod(size)))
    while count % together:
        together -= 1
    if together == count:
        return function(x)
    turns = x.reshape(count // together, together, *size)
    return jax.lax.map(function, turns).reshape(x.shape)
