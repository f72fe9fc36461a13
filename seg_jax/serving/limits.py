"""What a client may ask for at most."""

from __future__ import annotations

import dataclasses

from seg_jax.data import image_files
from seg_jax.records import check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what clients send and of what is done for them."""

    bytes: int = 16 << 20
    """Bytes of the body of a request."""
    pixels: int = 25_000_000
    """Pixels of a picture."""
    requests: int = 128
    """Requests at once, whatever they wait for; more are told to come back (429)."""
    waiting: int = 64
    """Questions that wait for a slot; more are told to come back (429)."""
    questions: int = 16
    """Questions of one request: boxes, clicks, names and tasks, each of which is one."""
    answers: int = 8
    """Answers to one question (`n`)."""
    tokens: int | None = None
    """Most tokens of an answer; None: as many as the model's layout has."""
    seconds: float = 60.0
    """Time of a request from its first byte to its last."""
    stop_seconds: float = 20.0
    """Time that answers on the way get when the server is stopped."""

    def __post_init__(self):
        least = dict.fromkeys(("bytes", "pixels", "requests", "questions", "answers", "tokens"), 1)
        check_least(self, "limits", waiting=1, stop_seconds=0, **least)
        if not 0 < self.seconds <= 86_400:
            raise ValueError(
                f"limits.seconds: expected more than 0 and at most 86400, got {self.seconds}; do: "
                "give the seconds that a request may take"
            )
        if self.pixels > image_files.MAX_PIXELS:
            raise ValueError(
                f"limits.pixels: expected at most {image_files.MAX_PIXELS}, got {self.pixels}; do: "
                "give fewer, larger pictures are not read"
            )
