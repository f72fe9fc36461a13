"""What a program shows on the terminal: stages, progress with time left, tables of numbers.

Names, answers and reasons come from outside: whatever is printed is escaped here, and no text is
read as markup.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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

from seg_jax import escapes

# Results go to standard output; everything else to standard error.
TERMINAL = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Prints one line about what is being done."""
    TERMINAL.print(escapes.line(text))


def tell(result: object) -> None:
    """Prints a result, a line, on standard output: where it lies."""
    print(escapes.line(result))


def tell_json(value: Any, *, indent: int | None = None) -> None:
    """Prints a result as JSON on standard output."""
    print(escapes.to_json(value, indent=indent))


@contextlib.contextmanager
def progress(
    title: str, total: int, *, shown: bool = True
) -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function of (done, total, text) that moves a bar with elapsed and remaining time."""
    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}", markup=False),
    )
    bar = Progress(*columns, console=TERMINAL, speed_estimate_period=60, disable=not shown)
    with bar:
        task = bar.add_task(escapes.line(title), total=total, text="")

        def move(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=escapes.line(text))

        yield move


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table of results on the terminal."""
    # Plain, so that five columns of numbers with intervals fit into eighty characters.
    title = escapes.line(title)
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        out.add_column(escapes.line(name), justify="left" if index == 0 else "right")
    for row in rows:
        out.add_row(*map(escapes.line, row))
    TERMINAL.print(out)
