"""Feeds names that steer a terminal through the programs, and looks at the bytes they print."""

import http.server
import json
import re
import threading

import published_formats as formats
import pytest

from seg_jax.cli import main as shell

# No slash, which no name can hold; twice the same letters turned around and coloured.
EVIL = "e\x1b]0;OWNED\x07\x9b31m\u202egpj\x7f[red]b[link=x]:cup:\nseg-jax: forged\r"
STEERS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def run(capfd):
    """Runs a command line; returns status and output once nothing in it steers a terminal."""

    def go(*words):
        status = shell.main([str(word) for word in words])
        printed, errors = capfd.readouterr()
        assert not STEERS.findall(printed + errors)
        assert not re.search(r"^seg-jax: forged", errors, re.MULTILINE)
        return status, printed, errors

    return go


@pytest.mark.parametrize(
    "words",
    [
        [EVIL],
        ["benchmark", EVIL],
        ["finetune", EVIL],
        ["finetune", f"{EVIL}.py"],
        ["predict", f"--{EVIL}", "1"],
        ["predict", "--image", EVIL, "--text", "x"],
        ["predict", "--image", "x.png", "--text", "x", "--answer", EVIL],
        ["predict", "--checkpoint", EVIL, "--image", "x.png", "--text", "x"],
        ["evaluate", "--checkpoint", EVIL],
        ["evaluate", "--protocol", EVIL],
        ["convert", EVIL, "out"],
        ["build", EVIL, "--source", EVIL, "--out", "out"],
        ["annotate", "--images", EVIL, "--prompts", EVIL, "--detector", EVIL, "--out", "out"],
    ],
)
def test_words_of_the_command_line(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    status, printed, errors = run(*words)
    assert (status in (1, 2), printed) == (True, "")
    assert "Traceback" not in errors


def test_a_traceback_is_shown_escaped(run, monkeypatch):
    monkeypatch.setenv("SEG_JAX_TRACEBACK", "1")
    status, _, errors = run("finetune", EVIL)
    assert status == 2
    assert "Traceback" in errors


def line_of(name):
    objects = [{"segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]], "name": EVIL}]
    phrases = [{"text": EVIL, "objects": [0]}]
    return {"image": f"images/{name}.png", "objects": objects, "phrases": phrases}


@pytest.fixture
def folder(tmp_path):
    """Returns a user's own folder with names, phrases and files that steer a terminal."""
    root = tmp_path / EVIL
    formats.image(root / "images" / f"{EVIL}.png", 0, form="PNG")
    (root / "images" / f"broken {EVIL}.png").write_bytes(b"no image")
    lines = [line_of(name) for name in (EVIL, f"broken {EVIL}", f"missing {EVIL}")]
    lines[0]["objects"].append({"segmentation": {EVIL: 1}})
    lines.append({"image": 7, EVIL: EVIL})
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return root


def test_a_build(run, folder, tmp_path):
    words = "build", "folder", "--source", folder, "--workers", 1
    _, printed, errors = run(*words, "--out", tmp_path / f"out {EVIL}")
    assert "OWNED" in printed + errors
    (folder / "train.jsonl").write_text(json.dumps(line_of(EVIL)) + "\n")
    status, printed, errors = run(*words, "--out", tmp_path / f"out {EVIL}")
    assert (status, "OWNED" in printed) == (0, True), errors
    assert list(tmp_path.glob("out*/build.json"))


def test_a_model_that_says_so(run, tmp_path):
    folder = tmp_path / EVIL
    folder.mkdir()
    for kind in ({"model_type": EVIL}, {"model_type": EVIL, "architectures": [EVIL]}, [EVIL]):
        (folder / "config.json").write_text(json.dumps(kind))
        status, printed, errors = run("convert", folder, tmp_path / "out")
        assert (status, printed) == (1, "")
        assert "OWNED" in errors
    (folder / "config.json").write_text("{" + EVIL)
    assert run("evaluate", "--checkpoint", folder)[0] == 1


def test_a_prediction_of_a_broken_image(run, folder):
    status, printed, errors = run("predict", "--image", folder / "train.jsonl", "--text", "x")
    assert (status, printed) == (1, "")
    assert "OWNED" in errors


def test_answers_that_are_evaluated(run, tmp_path):
    file = tmp_path / f"{EVIL}.jsonl"
    file.write_text(json.dumps({"key": EVIL, "kind": EVIL, "text": EVIL}) + "\n")
    for words in (["--protocol", "res"], ["--protocol", "res", "--data", tmp_path / EVIL]):
        status, printed, errors = run("evaluate", *words, "--answers", file)
        assert (status in (1, 2), printed) == (True, "")
        assert "Traceback" not in errors


@pytest.fixture
def endpoint(monkeypatch):
    """Returns the address of an endpoint that refuses everything with escapes in its body."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = EVIL.encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_that_refuses(run, endpoint, tmp_path):
    """esc-1: `ESC ] 0 ; OWNED BEL` in the body of a 401 was printed as it came."""
    images = tmp_path / "web"
    formats.image(images / f"{EVIL}.png", 0, form="PNG")
    for name in ("dino", "sam"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    models = ["--detector", tmp_path / "dino", "--segmenter", tmp_path / "sam"]
    words = ["--images", images, "--prompts", "cup", *models, "--describer", endpoint]
    status, printed, errors = run("annotate", *words, "--out", tmp_path / "out")
    assert (status, printed) == (1, "")
    assert "status 401" in errors
    assert r"\x1b]0;OWNED\x07" in errors
