"""What a program shows on the terminal: stages, progress with time left, tables of numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# Results go to standard output; everything else to standard error.
TERMINAL = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints one line about what is being done."""
    TERMINAL.print(text, markup=False)


@contextlib.contextmanager
def progress(
    title: str, total: int, *, shown: bool = True
) -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function of (done, total, text) that moves a bar with elapsed and remaining time."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}"),
    )
    bar = Progress(*columns, console=TERMINAL, speed_estimate_period=60, disable=not shown)
    with bar:
        task = bar.add_task(title, total=total, text="")

        def move(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield move


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table of results on the terminal."""
    # Plain, so that five columns of numbers with intervals fit into eighty characters.
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        out.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        out.add_row(*row)
    TERMINAL.print(out)
