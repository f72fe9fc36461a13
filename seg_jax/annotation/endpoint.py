"""Describes by an OpenAI-compatible endpoint, as vLLM serves one: patient, and trusting nothing."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import http.client
import io
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from seg_jax.annotation.stages import Answer, Ask, Failed, Model, Unusable

_AGAIN = {408, 409, 425, 429, *range(500, 600)}
"""Statuses that may go away by themselves."""
_SETUP = {401, 403, 404, 405}
"""Statuses that every image would get."""
_MOST_BYTES = 1 << 20
"""Of a response; a description is a thousandth of that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How an endpoint is asked."""

    model: str | None = None
    """Name of the model there; None: the first one that it lists."""
    key_variable: str = "SEG_JAX_DESCRIBER_KEY"
    """Environment variable with the key; none is sent if it is not set. The key is not stored."""
    max_tokens: int = 96
    """Of a description."""
    requests: int = 8
    """At once, from each process."""
    timeout_seconds: float = 60.0
    """Of one request, from its first byte to the last."""
    tries: int = 5
    """Of a question, before its image becomes a dead letter."""
    wait_seconds: float = 1.0
    """Before the second try; twice as long before each further one."""
    most_wait_seconds: float = 60.0
    """Between two tries, whatever the endpoint asks for."""

    def __post_init__(self):
        if min(self.max_tokens, self.requests, self.tries) < 1:
            raise ValueError(
                "endpoint: expected max_tokens, requests and tries of at least 1, got "
                f"{self.max_tokens}, {self.requests} and {self.tries}"
            )
        if not self.timeout_seconds > 0 or not 0 <= self.wait_seconds <= self.most_wait_seconds:
            raise ValueError(
                "endpoint: expected a timeout above 0 and waits of 0 or more, the longest last, got"
                f" {self.timeout_seconds}, {self.wait_seconds} and {self.most_wait_seconds}"
            )


def checked(url: str) -> str:
    """Returns the address of an endpoint without a slash at its end.

    Raises:
      ValueError: it is none that can be asked, or holds a password.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"describer: expected an address as http://HOST:8000/v1, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "describer: expected an address without user, password and query; put the key into an "
            "environment variable, see --endpoint.key-variable"
        )
    return url.rstrip("/")


class Endpoint:
    """A describer behind an address."""

    def __init__(
        self,
        url: str,
        settings: Settings | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Makes it ready; asks nothing yet.

        Args:
          url: of the interface, as http://localhost:8000/v1.
          settings: how it is asked.
          sleep: waits for so many seconds.

        Raises:
          ValueError: as `checked`, or the key cannot be sent.
        """
        self._url, self._settings = checked(url), settings or Settings()
        self._key = _key(self._settings.key_variable)
        self._sleep, self._random = sleep, random.Random()
        self._model = self._settings.model
        # A redirect would carry key and images to whoever it names.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def model(self) -> Model:
        """Returns which model answers.

        Raises:
          Unusable: the endpoint does not answer, or knows no such model.
        """
        try:
            found = self._patient("models", None)
            roots = {one["id"]: one.get("root") for one in found["data"]}
        except (AttributeError, KeyError, TypeError, Failed) as error:
            reason = error if isinstance(error, Failed) else "no list of models"
            raise Unusable(
                f"describer: expected an OpenAI-compatible endpoint at {self._url}, got {reason}; "
                "start it, or mend the address"
            ) from None
        names = [name for name in roots if isinstance(name, str)]
        wanted = self._model or next(iter(names), None)
        if wanted is None or wanted not in names:
            raise Unusable(
                f"describer: expected the model {wanted or 'of any name'} at {self._url}, got "
                f"{', '.join(names[:8]) or 'none'}; do: --endpoint.model NAME"
            )
        self._model = wanted
        # Where it runs may change, as long as it is the same; its folder there is all that is told.
        root = roots[wanted]
        return Model(wanted, root if isinstance(root, str) and root != wanted else "")

    def describe(self, asks: Sequence[Ask]) -> list[Answer]:
        """Returns the answers, several asked for at once.

        Raises:
          Failed: the endpoint gave none, or none that can be read, after all tries.
          Unusable: it refuses whatever is asked.
        """
        if self._model is None:
            self.model()
        most = min(self._settings.requests, max(1, len(asks)))
        with concurrent.futures.ThreadPoolExecutor(most) as pool:
            futures = [pool.submit(self._answer, ask) for ask in asks]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _answer(self, ask: Ask) -> Answer:
        address = base64.b64encode(_jpeg(ask.view)).decode("ascii")
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{address}"}}
        text = {"type": "text", "text": ask.question}
        return self._patient(
            "chat/completions",
            {
                "model": self._model,
                "messages": [{"role": "user", "content": [image, text]}],
                "max_tokens": self._settings.max_tokens,
                "temperature": 0,
                "seed": 0,
            },
            _read,
        )

    def _patient(
        self, path: str, body: Any, read: Callable[[Any], Any] = lambda found: found
    ) -> Any:
        """Returns what is read from a response, after as many tries as it takes.

        Raises:
          Failed: no try went well.
          Unusable: it refuses whatever is asked.
        """
        wait = self._settings.wait_seconds
        for left in reversed(range(self._settings.tries)):
            try:
                return read(self._ask(path, body))
            except _Again as error:
                if not left:
                    times = self._settings.tries
                    raise Failed(f"{error}, {times} times", transient=True) from None
                # Not all at once again: half of the wait is by chance.
                longest = self._settings.most_wait_seconds
                asked = max(wait * self._random.uniform(0.5, 1.0), error.seconds)
                self._sleep(min(longest, asked))
                wait = min(2 * wait, longest)
        raise AssertionError("unreachable")

    def _ask(self, path: str, body: Any) -> Any:
        """Returns the response to one request.

        Raises:
          _Again: there is none, or it is none; another try may go well.
          Failed: this request is refused.
          Unusable: every request is.
        """
        request = urllib.request.Request(f"{self._url}/{path}")
        request.add_header("Accept", "application/json")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        deadline = time.monotonic() + self._settings.timeout_seconds
        try:
            with self._opener.open(request, timeout=self._settings.timeout_seconds) as response:
                data = _body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, deadline)
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            late = isinstance(cause, TimeoutError)
            told = "no answer in time" if late else f"no answer ({type(cause).__name__}: {cause})"
            raise _Again(self._safe(told)) from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise _Again("a response that is no JSON") from None

    def _refused(self, error: urllib.error.HTTPError, deadline: float) -> None:
        """Raises what a status means."""
        try:
            said = _body(error, deadline)[:160].decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        words = self._safe(f"status {error.code}: {' '.join(said.split())}".rstrip(": "))
        if error.code in _AGAIN:
            raise _Again(words, _seconds(error.headers.get("Retry-After")))
        if error.code in _SETUP or 300 <= error.code < 400:
            raise Unusable(
                f"describer: expected {self._url} to answer, got {words}; mend the address, the "
                f"model or the key in {self._settings.key_variable}"
            )
        raise Failed(words)

    def _safe(self, text: str) -> str:
        """Returns a text without the key, should the endpoint have repeated it."""
        return text.replace(self._key, "[key]") if self._key else text


def _key(variable: str) -> str:
    """Returns the key in an environment variable; nothing if there is none."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        # Whoever reports it later would show it.
        raise ValueError(f"{variable}: expected a key of printable ASCII, got other characters")
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: they are errors."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Again(Exception):
    """A request that may go well another time."""

    def __init__(self, text: str, seconds: float = 0.0):
        super().__init__(text)
        self.seconds = seconds
        """How long to wait at least."""


def _body(response: Any, deadline: float) -> bytes:
    """Returns the bytes of a response.

    Raises:
      TimeoutError: they come too slowly.
      OSError: they end early, or are too many.
    """
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > _MOST_BYTES:
            raise OSError(f"more than {_MOST_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("too slow")
    return bytes(data)


def _read(found: Any) -> Answer:
    """Returns the answer in a response."""
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise _Again("a response without an answer") from None
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise _Again("a response whose answer is no text")
    return Answer(text, choice.get("finish_reason") in (None, "stop"))


def _seconds(value: str | None) -> float:
    """Returns what a Retry-After asks for in seconds; 0 for none, or a date."""
    try:
        return min(3600.0, max(0.0, float(value or 0)))
    except ValueError:
        return 0.0


def _jpeg(view: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
