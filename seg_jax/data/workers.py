"""Worker processes that end with their parent, and that Ctrl-C does not reach."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def block_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all processes, from those that are started within.

    They would print a traceback each. A Ctrl-C during the block reaches this process after it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_ahead(rows: Any, count: int) -> Iterator[Any]:
    """Returns an iterator over a `grain.IterDataset` that is read by processes deaf to Ctrl-C."""
    # Imported here: processes of a pool import this file too, and need neither.
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own; none of them is set here.
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=count)
    return iter(rows.mp_prefetch(options, _ignore_interrupts))


def _ignore_interrupts(*_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Pool(concurrent.futures.ProcessPoolExecutor):
    """A pool whose processes hear no Ctrl-C; tasks start them."""

    def submit(self, *task: Any, **words: Any) -> Any:
        with block_interrupts():
            return super().submit(*task, **words)


@contextlib.contextmanager
def pool(count: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Gives a pool of processes that hear no Ctrl-C and end when the block raises an error.

    They are spawned: a process with JAX inside must not be forked.
    """
    context, before = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with _Pool(count, context, _leave_with_parent) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                if worker not in before:
                    worker.terminate()
            raise


def _leave_with_parent() -> None:
    """Ends this process when its parent is killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()  # pyright: ignore[reportOptionalMemberAccess]
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
