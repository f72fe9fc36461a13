"""Scores of one's own: functions of a user judge answers beside the task, traced or on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Float, Int

from seg_jax.records import Array
from seg_jax.tasks.task import Judgement, Task

INVALID = "invalid/"
"""Begins the names of the measures that say which answers a score was no number in 0..1 of."""
TOLERANCE = 1e-3
"""How far beyond 0..1 a score may lie by rounding; it is cut off without being counted."""


class NoScores(ValueError):
    """A function has returned something else than scores."""


@runtime_checkable
class Function(Protocol):
    """What `reinforce --reward FILE.py:FUNCTION` names.

    It is traced with jax arrays, and so runs on the devices with the rest of a step, unless
    `on_host` marks it. It is to be a function of its arguments alone: the same every time.
    """

    def __call__(
        self, answer: Any, truth: Any, *, height: Int[Array, " n"], width: Int[Array, " n"]
    ) -> Mapping[str, Float[Array, " n"]]:
        """Returns named scores in 0..1, higher is better, floats.

        Args:
          answer: what the task's reader read, a tree [n ..]; of an answer that cannot be read
            nothing is used.
          truth: the task's record for each answer, a tree [n ..].
          height: pixels of the truth that the answer is judged on, see `Task.size_px`.
          width: the same.
        """
        ...


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def on_host(function: FunctionT) -> FunctionT:
    """Marks a score that is to get numpy arrays on the host, and so may use any library but JAX.

    A step waits for it. On a mesh it is called for the rows of each device by the process that has
    the device.
    """
    vars(function)["is_on_host"] = True
    return function


class Reward(NamedTuple):
    """A function with what is known of it."""

    title: str
    """As the user names it."""
    function: Function
    names: tuple[str, ...] = ()
    """Names of its scores."""

    @property
    def is_on_host(self) -> bool:
        """Whether it gets numpy arrays on the host."""
        return getattr(self.function, "is_on_host", False)

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        """Returns what the function returns of (answer, truth, height, width)."""
        answer, truth, height, width = arguments
        return self.function(answer, truth, height=height, width=width)


@dataclasses.dataclass(frozen=True)
class OwnScores:
    """Scores that stand beside those of a task."""

    rewards: tuple[Reward, ...]
    task: Task
    warn: Callable[[str], None] = lambda text: None
    """Is told, once for a function, that it fails on the host."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all scores."""
        return tuple(name for reward in self.rewards for name in reward.names)

    def added(self, answer: Any, truth: Any, judged: Judgement) -> Judgement:
        """Returns a judgement with these scores too (device).

        What is no number counts as 0, what lies beyond 0..1 as the nearer end. Measures say which
        answers that befell: `invalid/NAME`.

        Args:
          answer: what the reader read, a tree [*n ..].
          truth: one record for each answer, a tree [*n ..].
          judged: by the task.
        """
        shape = judged.verdict.shape
        flat = jax.tree.map(
            lambda leaf: leaf.reshape(math.prod(shape), *leaf.shape[len(shape) :]),
            (answer, truth),
        )
        size = self.task.size_px(flat[1])
        arguments = (*flat, size[..., 0], size[..., 1])
        scores, measures = dict(judged.scores), dict(judged.measures)
        for reward in self.rewards:
            call = self._host_scores if reward.is_on_host else traced_scores
            for name, values in call(reward, arguments).items():
                values = values.reshape(shape)
                valid = (values >= -TOLERANCE) & (values <= 1 + TOLERANCE)
                known = jnp.isfinite(values)
                scores[name] = jnp.where(known, jnp.clip(values, 0.0, 1.0), 0.0)
                measures[INVALID + name] = ~valid
        return judged._replace(scores=scores, measures=measures)

    def _host_scores(
        self, reward: Reward, arguments: tuple[Any, ...]
    ) -> dict[str, Float[Array, " n"]]:
        """Returns the scores of a function on the host as a step has them."""
        count = arguments[-1].shape[0]
        shapes = {name: jax.ShapeDtypeStruct((count,), jnp.float32) for name in reward.names}
        failed: list[str] = []

        def call(*given: Any) -> dict[str, Float[np.ndarray, " n"]]:
            # Copies: the memory of a step is neither to be written to nor to be kept.
            given = jax.tree.map(lambda leaf: np.asarray(leaf).copy(), given)
            try:
                return host_scores(reward, given)
            except Exception as error:
                if not failed:
                    failed.append(str(error))
                    said = (
                        error if isinstance(error, NoScores) else f"{type(error).__name__}: {error}"
                    )
                    self.warn(
                        f"warning: reward {reward.title}: failed on the host, answers that it "
                        f"fails for score 0 (invalid/{reward.names[0]} in the log): "
                        f"{' '.join(str(said).split())}"
                    )
                return _one_by_one(reward, given)

        def in_place(context: Any, out: Any, *given: Any) -> None:
            del context
            for name, values in call(*given).items():
                np.asarray(out[name])[...] = values

        # A pure_callback copies its arguments by the threads that are busy with calling it: with
        # several CPU devices all would wait for ever. Other devices have no such buffers.
        return jax.lax.platform_dependent(
            *arguments,
            cpu=buffer_callback(in_place, shapes),
            default=lambda *given: jax.pure_callback(call, shapes, *given),
        )


def _one_by_one(reward: Reward, arguments: tuple[Any, ...]) -> dict[str, Float[np.ndarray, " n"]]:
    """Returns the scores of answers that are not to be judged together; nan where that fails."""
    count = len(arguments[-1])
    found = {name: np.full(count, np.nan, np.float32) for name in reward.names}
    for row in range(count):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], arguments)
        try:
            for name, values in host_scores(reward, one).items():
                found[name][row] = values[0]
        except Exception:  # Whatever a user's library raises; the first was told.
            continue
    return found


def traced_scores(reward: Reward, arguments: tuple[Any, ...]) -> dict[str, Float[Array, " n"]]:
    """Returns the scores of a function as they are traced.

    Raises:
      NoScores: it returns something else than its names with floats [n].
    """
    found = _valid_scores(reward, reward(arguments), arguments[-1].shape[0], jax.Array)
    return {name: jnp.asarray(values, jnp.float32) for name, values in found.items()}


def host_scores(reward: Reward, arguments: tuple[Any, ...]) -> dict[str, Float[np.ndarray, " n"]]:
    """Returns the scores of a function on the host, of numpy arrays.

    Raises:
      NoScores: it returns something else than its names with floats [n].
    """
    found = _valid_scores(reward, reward(arguments), len(arguments[-1]), np.ndarray)
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def _valid_scores(reward: Reward, found: Any, count: int, kind: type) -> Mapping[str, Any]:
    """Returns what a function returned.

    Raises:
      NoScores: it is no mapping, has other names than before, or something else than floats [n].
    """
    title, arrays = reward.title, "numpy" if kind is np.ndarray else "jax"
    if not isinstance(found, Mapping) or not found:
        raise NoScores(
            f"reward {title}: expected a mapping of names to scores, got "
            f"{'an empty one' if isinstance(found, Mapping) else type(found).__name__}; "
            'do: return {"name": scores}'
        )
    if reward.names and set(reward.names) != set(found):
        raise NoScores(
            f"reward {title}: expected the scores {', '.join(reward.names)} every time, got "
            f"{', '.join(map(str, found))}; do: return the same names for all answers"
        )
    for name, values in found.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise NoScores(
                f"reward {title}: expected names of letters, digits and _, got {name!r}; "
                "do: rename this score"
            )
        if not isinstance(values, kind):
            got = type(values).__name__
        elif values.shape != (count,) or not jnp.issubdtype(values.dtype, jnp.floating):
            got = f"{values.dtype}{list(values.shape)}"
        else:
            continue
        raise NoScores(
            f"reward {title}: expected {arrays} floats [{count}] of {name}, one for each of "
            f"{count} answers, got {got}; do: return an array of that shape and kind"
        )
    return found


def with_names(title: str, function: Function, arguments: tuple[Any, ...]) -> Reward:
    """Returns a function with the names of its scores, called or traced once on some answers.

    Args:
      title: as the user names it.
      function: of the user.
      arguments: of the function, numpy arrays.

    Raises:
      NoScores: it returns something else than scores.
      Exception: whatever it raises itself.
    """
    reward = Reward(title, function)
    if reward.is_on_host:
        return reward._replace(names=tuple(host_scores(reward, arguments)))
    found = jax.eval_shape(lambda *some: traced_scores(reward, some), *arguments)
    return reward._replace(names=tuple(found))


def check_names(rewards: Iterable[Reward], task: Task) -> None:
    """Raises ValueError where two scores, of functions or of the task, have one name."""
    taken = dict.fromkeys(task.reward_weights, f"the task {task.name!r}")
    for reward in rewards:
        for name in reward.names:
            if name in taken:
                raise ValueError(
                    f"reward {reward.title}: expected names of its own, got {name}, a score of "
                    f"{taken[name]}; do: rename it"
                )
            taken[name] = f"reward {reward.title}"
