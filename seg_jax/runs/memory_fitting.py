"""Finds options with which the steps of a run fit the memory of a device, proven by compiling.

First come options that leave the training as it is, what costs least before what costs more: scores
of a few tokens at once, fewer rows at once, layers made again in the backward pass, moments in the
memory of the host. Only when asked for come those that change it: products in bfloat16, adapters
beside weights in bfloat16 that stay as they are, fewer rows, smaller images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from seg_jax.models.parallel import mesh_axes
from seg_jax.runs import compilation, console, lowering
from seg_jax.runs.compilation import Result
from seg_jax.training import processes, topology

Options = Mapping[str, Any]
"""Values by the names of their options, as compute.remat."""
Tried = Literal["nothing", "same", "all"]
"""What is tried where a step does not fit: nothing, options that leave what is learned as it is but
for rounding, or all."""
LOSS_CHUNK = 256
"""Tokens whose scores exist at once."""
FULL_ROWS = 4
"""Rows that a device has at once, below which it pays more to make layers again than to cut on."""
RANK = 16
"""Columns of an adapter."""
ROUND = 0.98
"""Share of the memory that an estimate aims at."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """What became of the search."""

    run: Any
    """With the options that were found."""
    plan: lowering.Plan
    """The steps of that run over the devices."""
    options: dict[str, Any]
    """The options that were changed, in their order."""
    results: list[Result]
    """What became of each step with these options."""
    compilations: int

    @property
    def fits(self) -> bool:
        """Whether all steps fit."""
        return all(result.fits is not False for result in self.results)

    @property
    def words(self) -> str:
        """The changed options as they are written on a command line; empty if none is."""
        return " ".join(
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            for name, value in self.options.items()
        )


def fit(
    run: Any,
    target: topology.Topology,
    *,
    only: tuple[str, ...] = (),
    hbm: float | None = None,
    tried: Tried = "same",
    tell: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Returns a run whose steps fit, or the one that comes nearest.

    Args:
      run: a completed run; of finetune or reinforce, if anything is to be tried.
      target: devices to compile for.
      only: names of its steps; none: all.
      hbm: GiB of a device to judge by; None: what the target has.
      tried: what is tried where a step does not fit.
      tell: is told a line about each step that is compiled.

    Raises:
      ValueError: it has no such step, or the memory that it is to fit is not known.
    """
    if tried != "nothing" and hbm is None and target.available_bytes is None:
        raise ValueError(
            f"fit: expected devices whose memory is known, got {target.name}; do: say it, as "
            "--hbm 16, or leave it out"
        )
    found = Fit(run, run.plan(target.devices), {}, [], 0)
    makers = tuple(found.plan.steps())
    if unknown := set(only) - set(makers):
        raise ValueError(
            f"only: expected steps among {', '.join(makers)}, got {sorted(unknown)}"
            "; do: name one of these, or leave --only out"
        )
    for name in only or makers:
        found = _fit_step(found, name, target, hbm=hbm, tried=tried, tell=tell)
    return found


def for_devices(run: Any, steps: tuple[str, ...]) -> Any:
    """Returns a completed run as it fits the devices that are here, if it asks for that.

    Args:
      run: of finetune or reinforce.
      steps: names of the steps that it consists of.

    Raises:
      ValueError: nothing that leaves the training as it is makes it fit.
    """
    if not run.fit:
        return run
    target = topology.here()
    tell = console.say if processes.is_first() else lambda line: None
    found = fit(run, target, only=steps, tell=tell)
    if not found.fits:
        worst = next(result for result in found.results if result.fits is False)
        has = f"{(worst.available_bytes or 0) / topology.GIB:.3g} GiB"
        raise ValueError(
            f"fit: expected steps that a device's {has} hold, got {worst.step}, which needs "
            f"{worst.needed_bytes / topology.GIB:.3g} GiB even with {found.words or 'all there is'}"
            f"; do: {'; or '.join(worst.advice)}"
        )
    tell(f"fit: {found.words or 'as it is'}, for {target.name}")
    return found.run


def _fit_step(
    found: Fit,
    name: str,
    target: topology.Topology,
    *,
    hbm: float | None,
    tried: Tried,
    tell: Callable[[str], None],
) -> Fit:
    """Returns what was found before with the options that a further step needs."""
    run, plan, options = found.run, found.plan, dict(found.options)
    compiled = found.compilations
    while True:
        tell(f"{name}: compiling" + (f" with {_last(options)}" if options else ""))
        result = compilation.compile_step(plan.steps()[name](), plan, target, hbm=hbm)
        compiled += 1
        change = None
        if result.fits is False and tried != "nothing":
            rungs = _rungs(run, result, _shards(plan.mesh), same=tried == "same")
            change = next(rungs, None)
        if change is None:
            return Fit(run, plan, options, [*found.results, result], compiled)
        if "adapter.rank" in change:  # What all weights needed may not be needed any more.
            run, options = found.run, dict(found.options)
        for option, value in change.items():
            before = _value(found.run, option)
            run = _replaced(run, option, value)
            options.pop(option, None)
            if value != before or option in found.options:
                options[option] = value
        plan = run.plan(target.devices)


def _last(options: Options) -> str:
    name, value = list(options.items())[-1]
    return f"{name} {value}"


def _shards(mesh: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in mesh_axes.MESH["batch"])


def _rungs(run: Any, result: Result, shards: int, *, same: bool) -> Iterator[Options]:
    """Yields what may make a step smaller, what costs least first."""
    if result.step not in ("sft", "update"):
        yield from _decoding_rungs(run, shards, same=same)
        return
    memory, available = result.memory, result.available_bytes
    if memory is not None and available is not None and memory.arguments >= available:
        # However few rows there are at once, what lies there between steps has no room.
        yield from _state_rungs(run, same=same)
        return
    yield from _training_rungs(run, result, shards)
    yield from _state_rungs(run, same=same)
    if not same:
        yield from _smaller_rows(run, shards)


def _state_rungs(run: Any, *, same: bool) -> Iterator[Options]:
    """Yields what makes weights, moments and gradients smaller."""
    adapts = run.adapter.rank is not None or run.adapter.folder is not None
    if not run.offload:
        yield {"offload": True}
    if same:
        return
    if run.compute.dtype != "bfloat16":
        yield {"compute.dtype": "bfloat16"}
    if not adapts:  # Weights that stay as they are lose nothing that training would add to them.
        bfloat16 = {"compute.dtype": "bfloat16", "compute.param_dtype": "bfloat16"}
        yield {"adapter.rank": RANK, **bfloat16, "offload": False}


def _training_rungs(run: Any, result: Result, shards: int) -> Iterator[Options]:
    """Yields what needs less at once in a step of training."""
    pieces = "policy.accumulate" if result.step == "update" else "objective.accumulate"
    if run.loss_chunk is None:
        yield {"loss_chunk": LOSS_CHUNK}
    if (more := _number_of_pieces(run, pieces, result, least=FULL_ROWS * shards)) is not None:
        yield {pieces: more}
    if run.compute.remat != "full":
        yield {"compute.remat": "full"}
    if (more := _number_of_pieces(run, pieces, result, least=shards)) is not None:
        yield {pieces: more}


def _decoding_rungs(run: Any, shards: int, *, same: bool) -> Iterator[Options]:
    """Yields what may make a step that reads prompts and decodes answers smaller."""
    if run.compute.decode_gib != 0:
        yield {"compute.decode_gib": 0.0}
    if same:
        return
    if run.compute.param_dtype != "bfloat16":
        yield {"compute.param_dtype": "bfloat16"}
    yield from _smaller_rows(run, shards)


def _smaller_rows(run: Any, shards: int) -> Iterator[Options]:
    """Yields half the rows of a batch, then half the visual tokens of an image."""
    half = run.feed.batch // 2
    if run.feed.batch % 2 == 0 and half >= shards and half % _pieces(run) == 0:
        yield {"feed.batch": half}
    layout = run.layout
    merged = layout.merge**2
    tokens = layout.max_patches // merged
    if run.feed.pack is None and layout.native is None and tokens >= 128:
        yield {
            "layout.max_prompt": layout.max_prompt - tokens // 2,
            "layout.max_patches": tokens // 2 * merged,
            "layout.max_pixels": tokens // 2 * merged * layout.patch**2,
        }


def _pieces(run: Any) -> int:
    """Returns the number that the rows of a batch are cut into."""
    if hasattr(run, "policy"):
        return run.policy.minibatches * run.policy.accumulate
    return run.objective.accumulate


def _number_of_pieces(run: Any, option: str, result: Result, *, least: int) -> int | None:
    """Returns into how many pieces a batch may be cut so that the step fits, or None.

    Args:
      run: with as many pieces as it has now.
      option: the name of their number.
      result: what became of the step with these.
      least: fewest rows of a piece.
    """
    rows, now, all_now = run.feed.batch, _value(run, option), _pieces(run)
    possible = [
        now * times
        for times in range(2, rows // all_now + 1)
        if rows % (all_now * times) == 0 and rows // (all_now * times) >= least
    ]
    if not possible:
        return None
    memory, available = result.memory, result.available_bytes
    if memory is None or available is None:
        return possible[0]
    # Temporaries grow with the rows of a piece, all else is there whatever their number.
    room = ROUND * available - (result.needed_bytes - memory.temporary)
    wanted = now * memory.temporary / room if room > 0 else math.inf
    return next((count for count in possible if count >= wanted), possible[-1])


def _value(run: Any, option: str) -> Any:
    for name in option.split("."):
        run = getattr(run, name)
    return run


def _replaced(run: Any, option: str, value: Any) -> Any:
    """Returns a configuration with another value of an option within it."""
    name, _, rest = option.partition(".")
    inner = _replaced(getattr(run, name), rest, value) if rest else value
    return dataclasses.replace(run, **{name: inner})
