"""Validation while a run trains: when it is due, what was best, when to give up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from seg_jax.records import check_least
from seg_jax.tasks.referring import Mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Greedy answers to held-out questions, by which the best weights of a run are known.

    The same questions are asked before the first step, every few steps and after the last one.
    Their time counts neither as the run's nor for `loop.minutes`.
    """

    samples: int = 0
    """Held-out images, with a question about each; 0: no validation. Drawn scenes are of a seed of
    their own."""
    every: int = 100
    """Steps between two validations."""
    patience: int | None = None
    """Validations in succession without a new best after which the run ends; None: it goes on."""
    score: str | None = None
    """Score of the task whose mean tells what is best; None: the task's main one."""
    mixture: Mixture | None = None
    """Questions that are asked; None: those of the run but for names, which nothing judges."""
    split: str | None = None
    """Split of the data sets that the images are of; None: images of the training split are held
    out, which the run then never sees."""
    batch: int = 64
    """Questions at once; as many more as the devices of the mesh need."""
    kept: Literal["best", "last"] = "best"
    """Whose weights are the model of the run: those of the best validation, or of the last step."""

    def __post_init__(self):
        check_least(self, "validate", samples=0, every=1, batch=1)
        if self.patience is not None and self.patience < 1:
            raise ValueError(
                f"validate.patience: expected at least 1 validation, got {self.patience}; do: "
                "give more, or None to go on to the last step"
            )
        if self.mixture is not None:
            self.mixture.check_judged()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not self.samples and value != field.default:
                raise ValueError(
                    f"validate.{field.name}: expected validate.samples beside it, got {value} "
                    "alone; do: say how many held-out images are asked about, as "
                    "--validate.samples 256"
                )


class Entry(NamedTuple):
    """What came of one validation."""

    step: int
    """Steps that the weights had behind them."""
    score: float
    """Mean of the score that tells what is best."""


class Validator:
    """Measures weights when it is due; knows the best ones, and whether there is hope for more."""

    def __init__(
        self,
        config: Validation,
        score: str,
        measure: Callable[[Any], Mapping[str, float]],
        *,
        tell: Callable[[str], None] = lambda text: None,
    ):
        """Begins without a history.

        Args:
          config: of the validation.
          score: name of the score that tells what is best.
          measure: (weights) -> mean of each score, the same in all processes.
          tell: called with a line about each validation.
        """
        self._config, self._score = config, score
        self._measure, self._tell = measure, tell
        self.history: list[Entry] = []
        """Every validation so far, in order."""
        self.seconds = 0.0
        """Time that all of them have taken, those before an interruption included."""

    @property
    def best(self) -> Entry | None:
        """The validation with the highest score, the earliest of equal ones; None before any."""
        return max(self.history, key=lambda entry: (entry.score, -entry.step), default=None)

    @property
    def is_hopeless(self) -> bool:
        """Whether as many validations as patience has have brought no new best."""
        patience, best = self._config.patience, self.best
        return (
            patience is not None
            and best is not None
            and len(self.history) - self.history.index(best) > patience
        )

    @property
    def keeps_best(self) -> bool:
        """Whether the run is to end with the best weights rather than the last ones."""
        return self._config.kept == "best"

    def is_due(self, step: int, *, last: bool) -> bool:
        """Returns whether the weights after some steps are to be measured."""
        return last or step % self._config.every == 0

    def measure(self, step: int, params: Any) -> dict[str, float]:
        """Returns the numbers of the weights for the log, and adds their score to the history."""
        begin = time.monotonic()
        means = self._measure(params)
        seconds = time.monotonic() - begin
        before = self.best
        self.history.append(Entry(step, float(means[self._score])))
        self.seconds += seconds
        best = self.best
        assert best is not None
        known = "the best so far" if best is not before else f"best {best.score:.3f} at {best.step}"
        self._tell(f"validation after step {step}: {self._score} {means[self._score]:.3f}, {known}")
        numbers = {f"validation/{name}": float(mean) for name, mean in means.items()}
        return numbers | {"seconds/validation": seconds}

    def get_state(self) -> dict[str, Any]:
        """Returns history, time and the step of the best weights as JSON values."""
        return {
            "history": [list(entry) for entry in self.history],
            "seconds": self.seconds,
            "best": None if self.best is None else self.best.step,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes the place of the validator that gave this state."""
        self.history = [Entry(int(step), float(score)) for step, score in state["history"]]
        self.seconds = float(state["seconds"])
