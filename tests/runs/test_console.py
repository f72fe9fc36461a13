"""What is printed goes through the console, and moves no terminal (esc-1)."""

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

import seg_jax
from seg_jax.runs import console

PACKAGE = Path(seg_jax.__file__).parent
EVIL = "e\x1b]0;OWNED\x07\x9b31m\u202e[red]x[/b][link=y]:cup:\nforged"
SHOWN = r"e\x1b]0;OWNED\x07\x9b31m\u202e[red]x[/b][link=y]:cup: forged"


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def printed(request, monkeypatch):
    """Returns a function that gives what was printed, to a file or to a terminal."""
    out = io.StringIO()
    made = Console(
        file=out, width=200, highlight=False, markup=False, emoji=False, color_system=None,
        force_terminal=request.param,
    )  # fmt: skip
    monkeypatch.setattr(console, "TERMINAL", made)
    return out.getvalue


def test_a_line_is_one_line(printed):
    console.say(EVIL)
    assert printed() == f"{SHOWN}\n"


def test_a_table_shows_names_as_they_are(printed):
    """A folder named [/b] was an error of markup."""
    console.table(EVIL, ("", EVIL), [[EVIL, "1"]])
    assert printed().count(SHOWN) == 3
    assert "\x1b]" not in printed()


def test_a_bar_shows_names_as_they_are(printed):
    with console.progress(EVIL, 2) as move:
        move(1, 2, EVIL)
    assert "\x1b]" not in printed()
    assert not {"\x07", "\x9b", "\u202e"} & set(printed())
    assert r"e\x1b]0;OWNED" in printed()


def test_results_are_lines_and_json(capsys):
    console.tell(EVIL)
    console.tell_json({"a": "\x7f\x9b"})
    assert capsys.readouterr().out == f"{SHOWN}\n" + '{"a": "\\u007f\\u009b"}\n'


PRINTERS = {
    "runs/console.py",
    "cli/main.py",  # Errors and help, before anything else is imported.
    "serving/telemetry.py",  # The log of a server: a line of JSON for every request.
    "training/processes.py",  # The line of a process that ends while its main thread waits.
    "training/coordination_service.py",  # A word to the process that has started it.
}


def test_nothing_is_printed_past_the_console():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                streams = (
                    "sys.stdout.write",
                    "sys.stderr.write",
                    "TERMINAL.print",
                    "traceback.print",
                )
                if name in ("print", "Console", "pprint") or name.startswith(streams):
                    found.add(path.relative_to(PACKAGE).as_posix())
    assert found - PRINTERS == set(), "do: print through runs/console.py"
    assert PRINTERS - found == set()
