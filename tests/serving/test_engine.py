"""The queue in front of the slots: order, bounds, those who give up, errors and the end."""

from __future__ import annotations

import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import scripted
import small_run

from seg_jax.models.vlm.running_batch import Sizes, Wanted
from seg_jax.records import Images, Tokens
from seg_jax.serving import engine, faults


def prompt(text="a", patches=4, length=40):
    ids = small_run.bundle().tokenizer.encode(text)
    row = np.zeros((1, length), np.int32)
    row[0, -len(ids) :] = ids
    empty = np.zeros((1, patches), np.int32)
    blank = np.zeros((1, patches, 3), np.uint8)
    segments = (np.arange(length) >= length - len(ids)).astype(np.int32)[None]
    tokens = Tokens(row, segments, np.zeros((1, 3, length), np.int32), row)
    return tokens, Images(blank, np.zeros((1, patches, 2), np.int32), empty, empty)


class Asked:
    """A question with what it has heard."""

    def __init__(self, text="a", *, answers=1, most=100, **shape):
        self.heard = queue.Queue()
        wanted = tuple(Wanted(most, number=number) for number in range(answers))
        self.question = engine.Question(
            *prompt(text, **shape), wanted=wanted, listen=self.heard.put
        )

    def whole(self):
        """Returns the tokens of all answers once they are over."""
        left, found = len(self.question.wanted), {}
        while left:
            piece = self.heard.get(timeout=30)
            if isinstance(piece, Exception):
                raise piece
            found.setdefault(piece.number, []).extend(piece.ids)
            left -= piece.over
        return found


@pytest.fixture
def gate(monkeypatch):
    """Returns an event without which no tokens are decoded; it is set until a test clears it."""
    event = threading.Event()
    event.set()
    decode = scripted.Batch.decode

    def wait_and_decode(self, keep):
        assert event.wait(30)
        return decode(self, keep)

    monkeypatch.setattr(scripted.Batch, "decode", wait_and_decode)
    return event


@pytest.fixture
def start():
    """Returns a function that starts an engine; all are stopped in the end."""
    begun = []

    def make(*, most_waiting=8, **sizes):
        batch = scripted.Batch(
            None,
            None,
            max_tokens=100,
            end_ids=(small_run.bundle().tokenizer.end_id,),
            words=8,
            sizes=Sizes(**{"slots": 2, "chunk": 4, "together": 2, **sizes}),
        )
        made = engine.Engine(batch, most_waiting=most_waiting)
        list(made.warm_up([prompt()]))
        batch.placed.clear()
        batch.reads.clear()
        made.start()
        begun.append(made)
        return made, batch

    yield make
    for one in begun:
        one.stop(0.0)


def expected():
    tokenizer = small_run.bundle().tokenizer
    return [*tokenizer.encode(scripted.SQUARE), tokenizer.end_id]


def test_more_questions_than_slots_are_answered_in_their_order(start, gate):
    made, batch = start()
    gate.clear()
    every = [Asked(text) for text in "abcde"]
    for one in every:
        made.submit(one.question)
    gate.set()
    for one in every:
        assert one.whole() == {0: expected()}
    assert [text for text, _ in batch.placed] == [*"abcde"]
    assert made.counts.answers == 5
    assert made.counts.tokens == 5 * len(expected())
    assert (made.waiting, made.taken) == (0, 0)


def test_answers_to_one_question_are_placed_together(start, gate):
    made, batch = start(slots=3)
    gate.clear()
    first, several = Asked("a"), Asked("b", answers=3)
    made.submit(first.question)
    scripted.wait_for(lambda: made.taken == 1)
    made.submit(several.question)
    time.sleep(0.1)
    assert made.waiting == 1
    gate.set()
    assert first.whole() == {0: expected()}
    assert several.whole() == dict.fromkeys(range(3), expected())
    assert [wanted.number for text, wanted in batch.placed if text == "b"] == [0, 1, 2]
    with pytest.raises(faults.Refused, match="1 to 3 answers"):
        made.submit(Asked(answers=4).question)


def test_prompts_of_one_shape_are_read_together(start, gate):
    made, batch = start(slots=6, together=4)
    gate.clear()
    blocker = Asked("x")
    made.submit(blocker.question)
    scripted.wait_for(lambda: made.taken == 1)
    every = [
        Asked(text, length=length) for text, length in zip("abcd", (40, 40, 30, 30), strict=True)
    ]
    for one in every:
        made.submit(one.question)
    gate.set()
    for one in [blocker, *every]:
        one.whole()
    assert batch.reads == [1, 2, 2]


def test_too_many_waiting_questions_are_sent_away(start, gate):
    made, _ = start(most_waiting=2, slots=1)
    gate.clear()
    every = [Asked() for _ in range(3)]
    made.submit(every[0].question)
    scripted.wait_for(lambda: made.taken == 1)
    for one in every[1:]:
        made.submit(one.question)
    with pytest.raises(faults.Busy, match="at most 2 waiting") as caught:
        made.submit(Asked().question)
    assert 1 <= caught.value.retry_after <= engine.LONGEST_RETRY
    gate.set()
    for one in every:
        one.whole()


def test_the_time_to_come_back_is_told_by_the_pace(start):
    made, _ = start()
    assert made.retry_after() == 1
    made._ends.extend([10.0, 13.0, 16.0])
    made._waiting = [None] * 4
    assert made.retry_after() == 12
    made._waiting = [None] * 400
    assert made.retry_after() == engine.LONGEST_RETRY
    made._waiting = []


def test_a_question_that_is_given_up_frees_its_slot(start, gate):
    made, batch = start(slots=1)
    gate.clear()
    first, waiting, last = Asked("a"), Asked("b"), Asked("c")
    for one in (first, waiting, last):
        made.submit(one.question)
    scripted.wait_for(lambda: made.taken == 1)
    first.question.given_up.set()
    waiting.question.given_up.set()
    gate.set()
    assert last.whole() == {0: expected()}
    assert [text for text, _ in batch.placed] == ["a", "c"]
    assert made.counts.given_up == 2
    assert made.taken == 0


def test_an_error_of_the_device_ends_what_it_had_and_nothing_else(start, monkeypatch):
    made, _ = start()
    decode = scripted.Batch.decode

    def fail(self, keep):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(scripted.Batch, "decode", fail)
    one = Asked()
    made.submit(one.question)
    with pytest.raises(RuntimeError, match="EXHAUSTED"):
        one.whole()
    monkeypatch.setattr(scripted.Batch, "decode", decode)
    again = Asked()
    made.submit(again.question)
    assert again.whole() == {0: expected()}
    assert made.is_alive
    assert made.counts.failed == 1


def test_a_stop_lets_answers_on_the_way_end(start, gate):
    made, _ = start()
    gate.clear()
    one = Asked()
    made.submit(one.question)
    scripted.wait_for(lambda: made.taken == 1)
    stopper = threading.Thread(target=made.stop, args=(30.0,))
    stopper.start()
    scripted.wait_for(lambda: made._closing)
    with pytest.raises(faults.Stopping):
        made.submit(Asked().question)
    gate.set()
    stopper.join(30)
    assert one.whole() == {0: expected()}
    assert not made.is_alive


def test_a_stop_without_time_tells_those_who_wait(start, gate):
    made, _ = start(slots=1)
    gate.clear()
    one, other = Asked(), Asked()
    made.submit(one.question)
    scripted.wait_for(lambda: made.taken == 1)
    made.submit(other.question)
    threading.Timer(0.2, gate.set).start()
    made.stop(0.0)
    for asked in (one, other):
        with pytest.raises(faults.Stopping):
            asked.whole()


def test_warm_up_asks_each_shape_once(start):
    made, batch = start()
    batch.reads.clear()
    assert list(made.warm_up([prompt(), prompt(length=20)])) == ["nothing"]
    assert batch.reads == [1, 1]
    assert SimpleNamespace(**vars(made.counts)).questions == 0
