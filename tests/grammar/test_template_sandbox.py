"""Bombs in chat templates (tmpl-1) end in one line, early and small, and the process with them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from seg_jax.grammar.tokenizer import template_sandbox, template_worker, tokens

TALK = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where, é \x1b?"}]}
]


def worker_id():
    process = template_sandbox._WORKER._process
    return process and process.pid


BOMBS = {
    "loops": "{% for i in range(99999) %}{% for i in range(99999) %}{% for i in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "format": "{{ '{:>3000000000}'.format(1) }}",
    "percent": "{{ '%3000000000d' % 1 }}",
    "repetition": "{{ 'a' * 10 ** 10 }}",
    "small repetitions": "{{ ('a' * 10000) | replace('', 'b' * 100000) }}",
    "a long list": "{{ ([1] * 10 ** 9) | length }}",
    "doubling": "{% set n = namespace(x='aaaa') %}"
    "{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "centred": "{{ 'a' | center(3000000000) }}",
    "a batch": "{{ [1] | batch(10 ** 9, 1) | list | length }}",
    "a macro in itself": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "conditions": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "signs": "{{ " + "-" * 200_000 + "1 }}",
    "sums": "{{ 1" + "+1" * 200_000 + " }}",
    "a long text": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "words": "{{ lipsum(99999, max=1000) }}",
    "wrapped words": "{{ ('a b ' * 3000000) | wordwrap(1) }}",
    "a power": "{{ 10 ** (10 ** 9) > 1 }}",
    "a huge template": "a" * (template_sandbox.MOST_TEMPLATE + 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_and_costs_little(name):
    """tmpl-1. How much it may take is not counted here: the machine of a test may be busy."""
    with pytest.raises(
        template_sandbox.BeyondLimits, match=r"^chat template: expected .*, got .*; do: check"
    ) as caught:
        template_sandbox.render(BOMBS[name])
    assert "\n" not in str(caught.value)
    assert template_sandbox.render("{{ 1 + 1 }}") == "2", "and the next one is rendered"
    worker = worker_id()
    with pytest.raises(template_sandbox.BeyondLimits) as again:
        template_sandbox.render(BOMBS[name])
    assert str(again.value) == str(caught.value)
    assert worker_id() == worker, "it is not tried again for every question"


def test_the_system_holds_the_process():
    template_sandbox.render("{{ 1 }}")
    folder = Path(f"/proc/{worker_id()}")
    limits = {line[:26].strip(): line[26:].split()[0] for line in _lines(folder / "limits")[:-1]}
    assert limits["Max address space"] == str(template_worker.MOST_BYTES)
    assert limits["Max file size"] == "0"
    assert limits["Max open files"] == "3"
    assert limits["Max processes"] == "0"
    names = {entry.partition("=")[0] for entry in _lines(folder / "environ", "\0")}
    assert names <= {*template_sandbox._KEPT, "PYTHONPATH", "PYTHONHASHSEED", ""}
    assert not {"jax", "numpy", "seg_jax"} & _modules()


def _lines(path, separator="\n"):
    return path.read_text().split(separator)


def _modules():
    """Returns what the program of the process imports."""
    code = (
        "import runpy, sys; sys.stdin = None\n"
        f"runpy.run_path({template_worker.__file__!r})['_warm_up'](); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_variables_arrive_as_they_are_and_errors_are_short():
    text = "é漢\ud800\x00\x1b\u2028"
    assert template_sandbox.render("{{ x }}", x=text) == text
    assert template_sandbox.render("{{ x is none }}{{ y }}", x=None, y=[1, {"a": True}]) == (
        "True[1, {'a': True}]"
    )
    with pytest.raises(ValueError, match="got ValueError: xxx") as caught:
        template_sandbox.render("{{ raise_exception('x' * 1000000) }}")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_process_that_was_ended_from_outside_is_started_again(number):
    template_sandbox.render("{{ 1 }}")
    os.kill(worker_id(), number)
    assert template_sandbox.render("{{ 2 }}") == "2"


def test_a_template_that_ends_its_process_is_told(monkeypatch):
    """As a fault of the interpreter would: it is tried once more, and no third time."""
    worker = template_sandbox._Worker()
    statuses = [-signal.SIGSEGV, -signal.SIGSEGV]
    monkeypatch.setattr(worker, "_try", lambda request: statuses.pop())
    assert worker.reply(b"{}") == {"beyond": "the end of its process (status -11)"}


def test_a_stop_within_a_request_leaves_no_reply_behind(monkeypatch):
    template_sandbox.render("{{ 1 }}")
    worker = template_sandbox._WORKER

    def interrupted(count, deadline):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(worker, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            template_sandbox.render("{{ 'old' }}")
    assert template_sandbox.render("{{ 'new' }}") == "new"


def test_a_process_that_says_nothing_is_given_up(monkeypatch):
    template_sandbox.render("{{ 1 }}")
    monkeypatch.setattr(template_sandbox, "ANSWER_SECONDS", 0.2)
    os.kill(worker_id(), signal.SIGSTOP)
    with pytest.raises(template_sandbox.BeyondLimits, match=r"got none after 0\.2 s"):
        template_sandbox.render("{{ 'silence' }}")
    monkeypatch.undo()
    assert template_sandbox.render("{{ 2 }}") == "2"


def test_a_process_whose_timer_fails_is_ended_for_its_work(monkeypatch):
    """Its own timer was seen not to end one within half a minute on a busy machine."""
    template_sandbox._WORKER.close()
    monkeypatch.setattr(template_worker, "WORK_SECONDS", 0.5)
    lasting = "import signal; signal.setitimer = lambda *_: None; import runpy, sys; "
    lasting += f"runpy.run_path({template_worker.__file__!r}, run_name='__main__')"
    popen = subprocess.Popen

    def without_timer(command, **options):
        return popen([*command[:-1], "-c", lasting], **options)

    monkeypatch.setattr(subprocess, "Popen", without_timer)
    # Its texts are too short to be refused for anything but the time that they take.
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3 + "{# no timer #}"
    begin = time.monotonic()
    with pytest.raises(template_sandbox.BeyondLimits, match=r"more than 0\.5 s of work"):
        template_sandbox.render(loops)
    assert time.monotonic() - begin < template_sandbox.ANSWER_SECONDS
    assert worker_id() is None


def test_no_python_is_an_error_that_says_so(monkeypatch):
    worker = template_sandbox._Worker()
    monkeypatch.setattr(template_worker, "__file__", "/nowhere.py")
    with pytest.raises(ChildProcessError, match=r"expected a process .* status 2; do: see"):
        worker.reply(b"{}")


def test_threads_take_turns():
    texts = {}

    def ask(number):
        for turn in range(20):
            texts[number, turn] = template_sandbox.render("{{ n }}/{{ t }}", n=number, t=turn)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {(n, t): f"{n}/{t}" for n in range(8) for t in range(20)}


def test_a_short_text_is_made_once(monkeypatch):
    asked, worker = [], template_sandbox._WORKER

    class Counting:
        def reply(self, request):
            asked.append(request)
            return worker.reply(request)

    monkeypatch.setattr(template_sandbox, "_WORKER", Counting())
    template_sandbox._remembered.cache_clear()
    for word, count in (("a", 1), ("a", 1), ("b", 2), ("a", 2), ("c" * 5000, 3), ("c" * 5000, 4)):
        assert template_sandbox.render("<{{ word }}>", word=word) == f"<{word}>"
        assert len(asked) == count
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a chat template that renders"):
            template_sandbox.render("{{ 1 / 0 }}")
    assert len(asked) == 6


SCRIPT = """
import multiprocessing, pickle, sys
from pathlib import Path
from seg_jax.grammar.tokenizer import template_sandbox, tokens

TALK = [{"role": "user", "content": "Where?"}]

def render(tokenizer):
    template_sandbox._remembered.cache_clear()
    text = tokenizer.render(TALK)
    return text, template_sandbox._WORKER._process.pid

if __name__ == "__main__":
    tokenizer = tokens.Tokenizer.load(Path(sys.argv[1]))
    wanted, own = render(tokenizer)
    ids = {own}
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            for text, worker in pool.map(render, [tokenizer] * 8):
                assert text == wanted
                ids.add(worker)
            pool.close()
            pool.join()
    assert render(tokenizer) == (wanted, own), "the fork took the process of its parent along"
    assert len(ids) >= 3
    print(*ids)
"""


def test_worker_processes_have_their_own_and_all_end(whole, tmp_path):
    """As Grain's: the tokenizer is pickled. Warnings are errors, as in a strict program."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", script, whole[0]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _wait_for_end([int(number) for number in done.stdout.split()])


def test_it_ends_with_a_parent_that_was_killed():
    code = (
        "import time; from seg_jax.grammar.tokenizer import template_sandbox as sandbox\n"
        "sandbox.render('{{ 1 }}'); print(sandbox._WORKER._process.pid, flush=True)\n"
        "time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_for_end([worker])


def _wait_for_end(workers):
    end = time.monotonic() + 60
    while any(_is_alive(worker) for worker in workers):
        assert time.monotonic() < end, "expected the processes to end"
        time.sleep(0.05)


def _is_alive(worker):
    try:  # One that nobody waits for, as in a container without an init, is as good as gone.
        return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_bomb_does_not_become_another_end_token(single):
    """A template that fails leaves eos_token; one that goes too far must not look like it."""
    folder, _ = single
    config = json.loads((folder / tokens.CONFIG).read_text())
    text = (folder / tokens.TOKENS).read_text()
    tokenizer = tokens.Tokenizer(text, config | {"chat_template": BOMBS["format"]})
    with pytest.raises(template_sandbox.BeyondLimits):
        _ = tokenizer.end_id


def test_the_text_is_that_of_jinja_in_this_process(single):
    """What a process of its own adds to the rendering is nothing."""
    variables = {"messages": TALK, "add_generation_prompt": True}
    template = single[1]._config["chat_template"]
    here = template_worker._rendered_text(template, variables)
    assert template_sandbox.render(template, **variables) == here
