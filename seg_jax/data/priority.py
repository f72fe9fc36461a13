"""Which prompts of a finite set come up: by how well they were answered before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from msgspec import Meta

from seg_jax import schemas

NEWEST = 0.5
"""Share of the newest mean reward in what is remembered of a prompt: the model moves on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Priority:
    """How likely a prompt is taken when its turn comes, in a finite set that is gone through again.

    With p the mean of its past rewards, as a share of what the weights of the reward allow:

    | by           | chance                           | source                                    |
    |--------------|----------------------------------|-------------------------------------------|
    | off          | 1                                | every prompt once in a round              |
    | learnability | floor + (1 - floor) 4 p (1 - p)  | p (1 - p), Rutherford et al. 2024         |
    |              |                                  | (2408.15099), of prompts LILO, 2502.12272 |
    | failure      | floor + (1 - floor) (1 - p)      | 1 - p, Kimi k1.5, 2501.12599              |

    Differs: what is known is the past, which costs nothing, where LILO samples afresh; a floor
    keeps every prompt in play.
    """

    by: Literal["off", "learnability", "failure"] = "off"
    """Prefer prompts that are neither solved nor hopeless, or those that fail."""
    floor: float = 0.1
    """Least chance of a prompt, above 0; one that was never asked has a chance of 1."""

    def __post_init__(self):
        if not 0 < self.floor <= 1:
            raise ValueError(
                f"priority.floor: expected a chance above 0, 1 at most, got {self.floor}; do: give "
                "one, as 0.1"
            )
        if self.by == "off" and self.floor != 0.1:
            raise ValueError(
                f"priority.floor: expected a priority.by beside it, got {self.floor} alone; do: "
                "give --priority.by too, or leave the floor out"
            )

    def chance(self, solved: Any) -> Any:
        """Returns the chance of prompts with these past rewards, 0..1; NaN: never asked."""
        worth = 1.0 - solved if self.by == "failure" else 4.0 * solved * (1.0 - solved)
        asked = ~np.isnan(solved) & (self.by != "off")
        return np.where(asked, self.floor + (1.0 - self.floor) * worth, 1.0)


class Memory:
    """What is remembered of each prompt, and which ones come next by it.

    All processes of a run remember the same, and so choose the same.
    """

    def __init__(
        self, priority: Priority, *, prompt_of: Callable[[int], int], prompts: int, seed: int
    ):
        """Begins with nothing known.

        Args:
          priority: says who is taken.
          prompt_of: gives the prompt whose turn is the n-th of the endless order.
          prompts: of the set.
          seed: of the choice.
        """
        self._priority, self._prompt_of, self._seed = priority, prompt_of, seed
        self._solved = np.full(prompts, np.nan)
        self._turn, self._taken = 0, np.zeros(0, np.int64)
        self._considered = 0

    @property
    def turns(self) -> int:
        """How many prompts had their turn so far, whether they were taken or not."""
        return self._turn

    def next_turns(self, count: int) -> list[int]:
        """Returns the turns of the prompts that are taken next."""
        turns, begin = [], self._turn
        while len(turns) < count:
            chance = self._priority.chance(self._solved[self._prompt_of(self._turn)])
            # By its turn alone, so that a run that goes on chooses as it would have.
            if np.random.default_rng([self._seed, self._turn]).random() < chance:
                turns.append(self._turn)
            self._turn += 1
        self._taken = np.array([self._prompt_of(turn) for turn in turns])
        self._considered = self._turn - begin
        return turns

    def note(self, solved: Float[np.ndarray, " B"]) -> None:
        """Remembers the mean rewards of the prompts that were taken last, 0..1, in their order."""
        for prompt, new in zip(self._taken.tolist(), solved.tolist(), strict=True):
            if not np.isfinite(new):
                continue  # A broken step ends the run.
            old = self._solved[prompt]
            self._solved[prompt] = new if np.isnan(old) else old + NEWEST * (new - old)

    def metrics(self) -> dict[str, float]:
        """Returns what to log.

        The share of prompts that are known, their mean reward, and the share that was taken of
        those whose turn came last.
        """
        known = self._solved[~np.isnan(self._solved)]
        return {
            "priority/known": len(known) / len(self._solved),
            "priority/solved": float(known.mean()) if len(known) else 0.0,
            "priority/taken": len(self._taken) / max(self._considered, 1),
        }

    def get_state(self) -> dict[str, Any]:
        """Returns all that is remembered as JSON values."""
        known = np.flatnonzero(~np.isnan(self._solved))
        return {
            "turn": self._turn,
            "prompts": len(self._solved),
            "known": known.tolist(),
            "solved": self._solved[known].tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Remembers what was stored.

        Raises:
          ValueError: it is of another set of prompts, or damaged.
        """
        stored = schemas.check(state, _Stored, where="priority", advice=_ADVICE)
        count, known = len(self._solved), np.array(stored.known, np.int64)
        if stored.prompts != count or len(known) != len(stored.solved) or (known >= count).any():
            raise ValueError(
                f"priority: expected what was remembered of {count} prompts, got "
                f"{len(stored.solved)} values for {len(known)} of {stored.prompts}; do: {_ADVICE}"
            )
        self._turn = stored.turn
        self._solved = np.full(count, np.nan)
        self._solved[known] = stored.solved


class _Stored(schemas.Record, frozen=True):
    """What is remembered, as a checkpoint has it."""

    turn: Annotated[int, Meta(ge=0, le=2**62)]
    prompts: Annotated[int, Meta(ge=0, le=2**62)]
    known: list[Annotated[int, Meta(ge=0, le=2**62)]]
    solved: list[Annotated[float, Meta(ge=0, le=1)]]


_ADVICE = "resume with the same data, or start over with --anew"
