"""Worker processes that end with their parent, and that Ctrl-C does not reach."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Lets processes that are started within not hear Ctrl-C, which a terminal sends to all.

    They would print a traceback each. One that comes meanwhile reaches this process afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts(*_: int) -> None:
    """Makes this process deaf to Ctrl-C, for workers that others start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def pool(count: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Gives a pool of so many processes, which an error within ends: first tasks start them.

    They are fresh ones: those with JAX inside must not be forked.
    """
    context, before = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(count, context, _leave_with_parent) as made:
        try:
            yield made
        except BaseException:
            made.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                if worker not in before:
                    worker.terminate()
            raise


def _leave_with_parent() -> None:
    """Ends this process when its parent is killed, which cannot tell it to end."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()  # pyright: ignore[reportOptionalMemberAccess]
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
