"""Describes objects by an OpenAI-compatible endpoint, such as vLLM's; trusts no response."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import io
import json
import os
import random
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.annotation import http_exchange
from seg_jax.annotation.stages import Answer, Failed, Model, Question, Unusable

_AGAIN = {408, 409, 425, 429, *range(500, 600)}
"""Statuses of requests that are worth another try."""
_SETUP = {401, 403, 404, 405}
"""Statuses that every request would get."""
_MOST_SAID = 160
"""Characters of a refusal that are told."""

Reply = TypeVar("Reply")


class _Message(schemas.Record, frozen=True):
    """What a model says."""

    content: schemas.Text | None


class _Choice(schemas.Record, frozen=True):
    """One of the answers in a response."""

    message: _Message
    finish_reason: schemas.Text | None = None


class _Completion(schemas.Record, frozen=True):
    """The response to a question."""

    choices: Annotated[list[_Choice], Meta(min_length=1, max_length=64)]


class _Served(schemas.Record, frozen=True):
    """A model that an endpoint lists."""

    id: schemas.FileName
    root: schemas.FileName | None = None


class _Listing(schemas.Record, frozen=True):
    """The response to the question which models there are."""

    data: Annotated[list[_Served], Meta(max_length=10_000)]


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
    """Time limit of one try: all of it, from looking up the host's address to the last byte of the
    response, however the endpoint spreads them. A question takes at most `tries` of these and the
    waits between them."""
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
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # Half a bracket, letters that stand for a slash, a port that is none.
        known = False
    if not known:
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

    def model(self) -> Model:
        """Returns which model answers.

        Raises:
          Unusable: the endpoint does not answer, or knows no such model.
        """
        try:
            listed = self._request_with_retries("models", None, _Listing)
        except Failed as error:
            raise Unusable(
                f"describer: expected an OpenAI-compatible endpoint at {self._url}, got {error}; "
                "do: start it, or correct the address"
            ) from None
        roots = {one.id: one.root for one in listed.data}
        wanted = self._model or next(iter(roots), None)
        if wanted is None or wanted not in roots:
            raise Unusable(
                f"describer: expected the model {wanted or 'of any name'} at {self._url}, got "
                f"{', '.join([*roots][:8]) or 'none'}; do: --endpoint.model NAME"
            )
        self._model = wanted
        # The address may change between runs of one annotation; the model's folder there may not.
        root = roots[wanted]
        return Model(wanted, root if root and root != wanted else "")

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
        found = self._request_with_retries(
            "chat/completions",
            {
                "model": self._model,
                "messages": [{"role": "user", "content": [image, text]}],
                "max_tokens": self._settings.max_tokens,
                "temperature": 0,
                "seed": 0,
            },
            _Completion,
        )
        choice = found.choices[0]
        return Answer(choice.message.content or "", choice.finish_reason in (None, "stop"))

    def _request_with_retries(self, path: str, body: Any, kind: type[Reply]) -> Reply:
        """Returns a response of a kind, after as many tries as it takes.

        Raises:
          Failed: no try went well.
          Unusable: it refuses every request.
        """
        wait = self._settings.wait_seconds
        for left in reversed(range(self._settings.tries)):
            try:
                return self._request(path, body, kind)
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

    def _request(self, path: str, body: Any, kind: type[Reply]) -> Reply:
        """Returns the response to one request.

        Raises:
          _Retry: there is no valid one, but another try may succeed.
          Failed: this request is refused.
          Unusable: every request is refused.
        """
        headers = {"Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        try:
            response = http_exchange.response(
                f"{self._url}/{path}",
                data,
                headers,
                seconds=self._settings.timeout_seconds,
            )
        except http_exchange.NoResponse as error:
            raise _Retry(self._without_key(str(error))[:_MOST_SAID]) from None
        # Before anything is cut off: of half a key that half would stay.
        said = response.body.replace(self._key.encode(), b"[key]") if self._key else response.body
        if not 200 <= response.status < 300:
            self._raise_for_status(response, said)
        try:
            found = files.parse_json(said, where="response", advice="")
        except ValueError:
            raise _Retry("a response that is no JSON") from None
        try:
            return schemas.check(found, kind, where="response", advice="")
        except ValueError as error:
            reason = str(error).partition("; do: ")[0]
            raise _Retry(f"a response of another form ({reason})") from None

    def _raise_for_status(self, response: http_exchange.Response, said: bytes) -> None:
        """Raises the exception that a status with a text stands for."""
        text = " ".join(said[:_MOST_SAID].decode("utf-8", "replace").split())
        words = f"status {response.status}: {text}".rstrip(": ")
        if response.status in _AGAIN:
            raise _Retry(words, _retry_after_seconds(response.retry_after))
        if response.status in _SETUP or 300 <= response.status < 400:
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


class _Retry(Exception):
    """A request that may succeed another time."""

    def __init__(self, text: str, seconds: float = 0.0):
        super().__init__(text)
        self.seconds = seconds
        """Least time to wait before the next try."""


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
