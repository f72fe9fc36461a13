"""The one thread that has the device: questions wait for slots, answers leave them in pieces."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seg_jax.models.vlm.running_batch import Drawn, RunningBatch, Wanted
from seg_jax.records import Images, Tokens
from seg_jax.serving import faults

REMEMBERED = 64
"""Answers from which the speed of the server is told."""
LONGEST_RETRY = 60
"""Seconds after which a client that was sent away is asked to come back, at most."""


class Piece(NamedTuple):
    """What an answer has grown by."""

    number: int
    """Number of the answer among those to one question."""
    ids: tuple[int, ...]
    logp: tuple[float, ...]
    over: bool


Listener = Callable[[Piece | Exception], None]
"""Gets every piece, or the error that ended the question, in the engine's thread."""


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A prompt on its way to its answers."""

    tokens: Tokens
    """One row (batch axis 1), of the length of one of the warmed-up ones."""
    images: Images
    wanted: tuple[Wanted, ...]
    """One for each answer."""
    listen: Listener
    given_up: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set by whoever does not want the answers any more; its slots are free after the next look."""


@dataclasses.dataclass
class Counts:
    """What an engine has done since it began."""

    questions: int = 0
    answers: int = 0
    tokens: int = 0
    given_up: int = 0
    failed: int = 0
    turns: int = 0
    """Calls that decoded."""
    decoded_slots: int = 0
    """Slots with an answer in all of these calls together."""


class Engine:
    """Feeds a running batch from a queue, in a thread of its own."""

    def __init__(self, batch: RunningBatch, *, most_waiting: int):
        """Takes a batch; `warm_up` compiles it and `start` sets it going.

        Args:
          batch: what answers.
          most_waiting: questions that may wait for a slot.
        """
        self.counts = Counts()
        self._batch, self._most_waiting = batch, most_waiting
        self._waiting: collections.deque[Question] = collections.deque()
        self._changed = threading.Condition()
        self._slots: list[tuple[Question, int] | None] = [None] * batch.sizes.slots
        self._ends: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def warm_up(self, rows: Sequence[tuple[Tokens, Images]]) -> Iterator[str]:
        """Compiles all programs and answers one question of each shape; yields what is ready."""
        yield from self._batch.compile_for(rows)
        for row in rows:
            prefix = self._batch.read([row])
            self._batch.place(prefix, 0, slot=0, wanted=Wanted(max_tokens=2))
            self._batch.decode(np.arange(len(self._slots)) == 0)
        self._batch.clear()

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive()

    @property
    def slots(self) -> int:
        """Answers that are decoded at once."""
        return len(self._slots)

    @property
    def waiting(self) -> int:
        """Questions that have no slot yet."""
        return len(self._waiting)

    @property
    def taken(self) -> int:
        """Slots with an answer."""
        return sum(slot is not None for slot in self._slots)

    def submit(self, question: Question) -> None:
        """Lets a question wait for its slots.

        Raises:
          Busy: too many wait already.
          Stopping: the engine is about to end.
          Refused: it asks for more answers than there are slots.
        """
        if not 1 <= len(question.wanted) <= len(self._slots):
            raise faults.Refused(
                f"answers: expected 1 to {len(self._slots)} answers to a question, got "
                f"{len(question.wanted)}; do: ask for fewer"
            )
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise _stopping()
            if len(self._waiting) >= self._most_waiting:
                raise faults.Busy(
                    f"server: expected at most {self._most_waiting} waiting questions, got another"
                    "; do: ask again after the time in Retry-After",
                    retry_after=self.retry_after(),
                )
            self._waiting.append(question)
            self._changed.notify()

    def retry_after(self) -> int:
        """Returns the seconds after which there should be room, by the latest answers."""
        if len(self._ends) < 2:
            return 1
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(LONGEST_RETRY, max(1, math.ceil(pace * len(self._waiting))))

    def stop(self, seconds: float) -> None:
        """Takes no more questions, answers those that are there for so long, then ends."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            self._ended = True
        self._thread.join()
        for question in self._every([*self._waiting]):
            question.listen(_stopping())

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or any(self._slots) or self._closing):
                    self._changed.wait()
                if self._ended or (self._closing and not (self._waiting or any(self._slots))):
                    return
            taken: list[Question] = []
            try:
                while taken := self._next_questions():
                    self._read_and_place(taken)
                self._decode()
            except Exception as error:
                self._fail(taken, error)

    def _next_questions(self) -> list[Question]:
        """Returns the questions that are read next: in order, of one shape, with slots for all."""
        free, found = self._slots.count(None), []
        with self._changed:
            while self._waiting and len(found) < self._batch.sizes.together:
                question = self._waiting[0]
                if question.given_up.is_set():
                    self.counts.given_up += 1
                elif len(question.wanted) > free or (
                    found and _shape(found[0]) != _shape(question)
                ):
                    break
                else:
                    free -= len(question.wanted)
                    found.append(question)
                self._waiting.popleft()
        return found

    def _read_and_place(self, questions: list[Question]) -> None:
        prefix = self._batch.read([(one.tokens, one.images) for one in questions])
        self.counts.questions += len(questions)
        for which, question in enumerate(questions):
            for number, wanted in enumerate(question.wanted):
                slot = self._slots.index(None)
                self._slots[slot] = question, number
                self._tell(self._batch.place(prefix, which, slot=slot, wanted=wanted), [slot])

    def _decode(self) -> None:
        for slot, taken in enumerate(self._slots):
            if taken is not None and taken[0].given_up.is_set():
                self._slots[slot] = None
                self.counts.given_up += taken[1] == 0
        keep = np.array([taken is not None for taken in self._slots])
        if keep.any():
            self.counts.turns += 1
            self.counts.decoded_slots += int(keep.sum())
            self._tell(self._batch.decode(keep), range(len(self._slots)))

    def _tell(self, drawn: Drawn, slots: Iterable[int]) -> None:
        """Hands what was drawn to the questions in the slots, and frees those of whole answers."""
        for row, slot in enumerate(slots):
            if row >= len(drawn.count) or (taken := self._slots[slot]) is None:
                continue
            question, number = taken
            count, over = int(drawn.count[row]), not drawn.live[row]
            if over:
                self._slots[slot] = None
                self._ends.append(time.monotonic())
            self.counts.tokens += count
            self.counts.answers += over
            ids, logp = drawn.ids[row, :count].tolist(), drawn.logp[row, :count].tolist()
            question.listen(Piece(number, tuple(ids), tuple(logp), over))

    def _fail(self, questions: list[Question], error: Exception) -> None:
        """Ends all questions that the device had, and begins with an empty batch."""
        lost = self._every(questions)
        self._slots = [None] * len(self._slots)
        self.counts.failed += len(lost)
        for question in lost:
            question.listen(error)
        self._batch.clear()

    def _every(self, questions: list[Question]) -> list[Question]:
        """Returns questions and those that have slots, each once."""
        return [*dict.fromkeys([*questions, *(taken[0] for taken in self._slots if taken)])]


def _stopping() -> faults.Stopping:
    return faults.Stopping("server: expected one that runs, got one that stops; do: wait for it")


def _shape(question: Question) -> tuple[int, int]:
    return question.tokens.ids.shape[1], question.images.image.shape[1]
