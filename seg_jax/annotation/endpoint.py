"""Describes objects by an OpenAI-compatible endpoint, such as vLLM's; trusts no response."""

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

from seg_jax.annotation.stages import Answer, Failed, Model, Question, Unusable

_AGAIN = {408, 409, 425, 429, *range(500, 600)}
"""Statuses of requests that are worth another try."""
_SETUP = {401, 403, 404, 405}
"""Statuses that every request would get."""
_MOST_BYTES = 1 << 20
"""Most bytes of a response; a description has a thousandth of that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How an endpoint is queried."""

    model: str | None = None
    """Name of the model at the endpoint; None: the first one that it lists."""
    key_variable: str = "SEG_JAX_DESCRIBER_KEY"
    """Environment variable with the key; none is sent if it is not set. The key is not stored."""
    max_tokens: int = 96
    """Most tokens of a description."""
    requests: int = 8
    """Number of requests at once, from each process."""
    timeout_seconds: float = 60.0
    """Time limit of one request, from its first byte to the last."""
    tries: int = 5
    """Number of tries of a question before its image becomes a dead letter."""
    wait_seconds: float = 1.0
    """Wait before the second try; it doubles before each further one."""
    most_wait_seconds: float = 60.0
    """Longest wait between two tries, whatever the endpoint demands."""

    def __post_init__(self):
        if min(self.max_tokens, self.requests, self.tries) < 1:
            raise ValueError(
                "endpoint: expected max_tokens, requests and tries of at least 1, got "
                f"{self.max_tokens}, {self.requests} and {self.tries}"
                "; do: give 1 or more of each"
            )
        if not self.timeout_seconds > 0 or not 0 <= self.wait_seconds <= self.most_wait_seconds:
            raise ValueError(
                "endpoint: expected a timeout above 0 and waits of 0 or more, the longest last, got"
                f" {self.timeout_seconds}, {self.wait_seconds} and {self.most_wait_seconds}"
                "; do: give a timeout_seconds above 0 and a wait_seconds from 0 to "
                "most_wait_seconds"
            )


def clean_address(url: str) -> str:
    """Returns the address of an endpoint without a slash at its end.

    Raises:
      ValueError: it is not an HTTP address, or holds a password.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"describer: expected an address as http://HOST:8000/v1, got {url!r}"
            "; do: correct --describer"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "describer: expected an address without user, password and query, got one with them; "
            "do: put the key into an environment variable, see --endpoint.key-variable"
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
        """Prepares requests; sends none yet.

        Args:
          url: address of the interface, as http://localhost:8000/v1.
          settings: how it is queried.
          sleep: waits for a number of seconds.

        Raises:
          ValueError: as `checked`, or the key cannot be sent.
        """
        self._url, self._settings = clean_address(url), settings or Settings()
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
            found = self._request_with_retries("models", None)
            roots = {one["id"]: one.get("root") for one in found["data"]}
        except (AttributeError, KeyError, TypeError, Failed) as error:
            reason = error if isinstance(error, Failed) else "no list of models"
            raise Unusable(
                f"describer: expected an OpenAI-compatible endpoint at {self._url}, got {reason}; "
                "do: start it, or correct the address"
            ) from None
        names = [name for name in roots if isinstance(name, str)]
        wanted = self._model or next(iter(names), None)
        if wanted is None or wanted not in names:
            raise Unusable(
                f"describer: expected the model {wanted or 'of any name'} at {self._url}, got "
                f"{', '.join(names[:8]) or 'none'}; do: --endpoint.model NAME"
            )
        self._model = wanted
        # The address may change between runs of one annotation; the model's folder there may not.
        root = roots[wanted]
        return Model(wanted, root if isinstance(root, str) and root != wanted else "")

    def describe(self, questions: Sequence[Question]) -> list[Answer]:
        """Returns the answers; several requests run at once.

        Raises:
          Failed: the endpoint gave none, or none that can be read, after all tries.
          Unusable: it refuses every request.
        """
        if self._model is None:
            self.model()
        most = min(self._settings.requests, max(1, len(questions)))
        with concurrent.futures.ThreadPoolExecutor(most) as pool:
            futures = [pool.submit(self._answer, question) for question in questions]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _answer(self, question: Question) -> Answer:
        address = base64.b64encode(_jpeg(question.view)).decode("ascii")
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{address}"}}
        text = {"type": "text", "text": question.text}
        return self._request_with_retries(
            "chat/completions",
            {
                "model": self._model,
                "messages": [{"role": "user", "content": [image, text]}],
                "max_tokens": self._settings.max_tokens,
                "temperature": 0,
                "seed": 0,
            },
            _read_answer,
        )

    def _request_with_retries(
        self, path: str, body: Any, read: Callable[[Any], Any] = lambda found: found
    ) -> Any:
        """Returns what `read` makes of a response, after as many tries as it takes.

        Raises:
          Failed: no try went well.
          Unusable: it refuses every request.
        """
        wait = self._settings.wait_seconds
        for left in reversed(range(self._settings.tries)):
            try:
                return read(self._request(path, body))
            except _Retry as error:
                if not left:
                    times = self._settings.tries
                    raise Failed(f"{error}, {times} times", transient=True) from None
                # Half of the wait is random, so that requests do not all come at once again.
                longest = self._settings.most_wait_seconds
                pause = max(wait * self._random.uniform(0.5, 1.0), error.seconds)
                self._sleep(min(longest, pause))
                wait = min(2 * wait, longest)
        raise AssertionError  # The last try returns or raises.

    def _request(self, path: str, body: Any) -> Any:
        """Returns the response to one request.

        Raises:
          _Retry: there is no valid one, but another try may succeed.
          Failed: this request is refused.
          Unusable: every request is refused.
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
                data = _read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._raise_for_status(error, deadline)
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            late = isinstance(cause, TimeoutError)
            reason = "no answer in time" if late else f"no answer ({type(cause).__name__}: {cause})"
            raise _Retry(self._without_key(reason)) from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise _Retry("a response that is no JSON") from None

    def _raise_for_status(self, error: urllib.error.HTTPError, deadline: float) -> None:
        """Raises the exception that a status stands for."""
        try:
            said = _read_body(error, deadline)[:160].decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        words = self._without_key(f"status {error.code}: {' '.join(said.split())}".rstrip(": "))
        if error.code in _AGAIN:
            raise _Retry(words, _retry_after_seconds(error.headers.get("Retry-After")))
        if error.code in _SETUP or 300 <= error.code < 400:
            raise Unusable(
                f"describer: expected {self._url} to answer, got {words}; do: correct the address, "
                f"the model or the key in {self._settings.key_variable}"
            )
        raise Failed(words)

    def _without_key(self, text: str) -> str:
        """Returns a text without the key, should the endpoint have repeated it."""
        return text.replace(self._key, "[key]") if self._key else text


def _key(variable: str) -> str:
    """Returns the key in an environment variable, or an empty text if there is none."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        # Not shown here: an error about the header would show it later.
        raise ValueError(
            f"{variable}: expected a key of printable ASCII, got other characters"
            "; do: set it to the key alone"
        )
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: they are errors."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Retry(Exception):
    """A request that may succeed another time."""

    def __init__(self, text: str, seconds: float = 0.0):
        super().__init__(text)
        self.seconds = seconds
        """Least time to wait before the next try."""


def _read_body(response: Any, deadline: float) -> bytes:
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


def _read_answer(found: Any) -> Answer:
    """Returns the answer in a response."""
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise _Retry("a response without an answer") from None
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise _Retry("a response whose answer is no text")
    return Answer(text, choice.get("finish_reason") in (None, "stop"))


def _retry_after_seconds(value: str | None) -> float:
    """Returns the seconds of a Retry-After header; 0 for none, or for a date."""
    try:
        return min(3600.0, max(0.0, float(value or 0)))
    except ValueError:
        return 0.0


def _jpeg(view: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
