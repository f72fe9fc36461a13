"""The dialect of OpenAI's chat completions: one picture and a question, whole or as it is written.

Fields that would change what an answer is and that we do not have are refused, not passed over;
those that only say who asks (`user`, `metadata`, `store`) change nothing.

Source: OpenAI API reference, chat completions and models; the client is PyPI's `openai`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from seg_jax import schemas
from seg_jax.serving import faults, pictures
from seg_jax.serving.answering import Answering, Growth, Manner, Written

ADVICE = "see the README of seg_jax/serving"
IDLE = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "top_p": (None, 1, 1.0),
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "logit_bias": (None, {}),
    "stop": (None, []),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
"""Fields with the values that ask for nothing; any other value is refused."""

Content = Annotated[str, Meta(max_length=10_000)]


class _Address(schemas.Record, frozen=True):
    url: Annotated[str, Meta(min_length=1)]


class _Part(schemas.Record, frozen=True):
    type: Literal["text", "image_url"]
    text: Content | None = None
    image_url: _Address | None = None


class _Message(schemas.Record, frozen=True):
    role: Literal["system", "developer", "user"]
    content: Content | list[_Part]


class _StreamOptions(schemas.Record, frozen=True):
    include_usage: bool = False


class Request(schemas.Record, frozen=True):
    """The fields of a request that act; `IDLE` are checked beside them."""

    messages: Annotated[list[_Message], Meta(min_length=1, max_length=8)]
    model: Annotated[str, Meta(max_length=200)] = ""
    n: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    max_tokens: schemas.Whole | None = None
    max_completion_tokens: schemas.Whole | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class Chat(NamedTuple):
    """A request that is understood."""

    id: str
    created: int
    system: str | None
    text: str
    picture: str
    manner: Manner
    streams: bool
    tells_usage: bool


class Completions:
    """Answers `/v1/chat/completions` and `/v1/models`."""

    def __init__(self, answering: Answering):
        self._answering = answering
        self._since = int(time.time())

    def models(self) -> dict[str, Any]:
        """Returns the list of models: one."""
        return {"object": "list", "data": [self.model(self._answering.name)]}

    def model(self, name: str) -> dict[str, Any]:
        """Returns what is told of a model.

        Raises:
          Refused: there is none of this name.
        """
        if name != self._answering.name:
            raise faults.Refused(
                f"model: expected {self._answering.name!r}, got {name[:60]!r}; do: name this one"
            )
        return {"id": name, "object": "model", "created": self._since, "owned_by": "seg-jax"}

    def understand(self, value: Any) -> Chat:
        """Returns a request as it is understood.

        Raises:
          Fault: it is refused.
        """
        request = schemas.check(value, Request, where="request", advice=ADVICE)
        for name, idle in IDLE.items():
            if value.get(name) not in idle:
                raise faults.Refused(
                    f"{name}: expected it left out, got {schemas.short_repr(value[name])}; do: "
                    "leave it out, this server does not have it"
                )
        if request.model and request.model != self._answering.name:
            self.model(request.model)
        limits, answers = self._answering.limits, request.n or 1
        if answers > limits.answers:
            raise faults.TooLarge(
                f"n: expected at most {limits.answers}, got {answers}; do: ask for fewer"
            )
        system, text, picture = _question(request.messages)
        heat = 1.0 if request.temperature is None else request.temperature
        manner = Manner(
            answers=answers,
            temperature=heat,
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
            max_tokens=request.max_completion_tokens or request.max_tokens,
        )
        options = request.stream_options
        return Chat(
            f"chatcmpl-{secrets.token_hex(12)}",
            int(time.time()),
            system,
            text,
            picture,
            manner,
            bool(request.stream),
            options is not None and options.include_usage,
        )

    async def complete(self, chat: Chat) -> dict[str, Any]:
        """Returns the whole reply to a request."""
        found = [growth.over async for growth in self._grow(chat) if growth.over is not None]
        found.sort(key=lambda written: written.number)
        choices = [
            {
                "index": one.number,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "finish_reason": one.finish,
                "logprobs": None,
            }
            for one in found
        ]
        head = self._head(chat, "chat.completion")
        return head | {"choices": choices, "usage": self._usage(found)}

    async def stream(self, chat: Chat) -> AsyncIterator[str]:
        """Yields the reply to a request as server-sent events."""
        head, found = self._head(chat, "chat.completion.chunk"), []

        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps(head | {'choices': choices} | more)}\n\n"

        begun: set[int] = set()
        async for growth in self._grow(chat):
            delta = {} if growth.number in begun else {"role": "assistant"}
            begun.add(growth.number)
            finish = growth.over.finish if growth.over else None
            choice = {"index": growth.number, "delta": delta | {"content": growth.text}}
            yield event([choice | {"finish_reason": finish, "logprobs": None}])
            found += [growth.over] if growth.over else []
        if chat.tells_usage:
            yield event([], usage=self._usage(found))
        yield "data: [DONE]\n\n"

    async def _grow(self, chat: Chat) -> AsyncIterator[Growth]:
        data = pictures.bytes_of(chat.picture, where="image_url")
        image = await self._answering.picture(data, where="image_url")
        async for growth in self._answering.write(
            image, chat.text, system=chat.system, manner=chat.manner
        ):
            yield growth

    def _head(self, chat: Chat, kind: str) -> dict[str, Any]:
        return {
            "id": chat.id,
            "object": kind,
            "created": chat.created,
            "model": self._answering.name,
            "system_fingerprint": None,
        }

    def _usage(self, found: list[Written]) -> dict[str, int]:
        prompt = max((one.prompt for one in found), default=0)
        written = sum(one.tokens for one in found)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        }


def _question(messages: list[_Message]) -> tuple[str | None, str, str]:
    """Returns what the system says, what the user asks and the picture.

    Raises:
      Refused: there is not one user's turn with one picture, which models are taught.
    """
    users = [one for one in messages if one.role == "user"]
    systems = [one for one in messages if one.role != "user"]
    if len(users) != 1 or len(systems) > 1 or messages[-1] is not users[0]:
        raise faults.Refused(
            "messages: expected one of the user, after one of the system or none, got "
            f"{len(users)} and {len(systems)}; do: ask each question in a request of its own, the "
            "model is taught single turns"
        )
    parts = users[0].content
    parts = [_Part(type="text", text=parts)] if isinstance(parts, str) else parts
    texts = [part.text for part in parts if part.type == "text" and part.text]
    addresses = [part.image_url.url for part in parts if part.image_url is not None]
    if len(addresses) != 1 or not texts:
        raise faults.Refused(
            f"messages: expected one image_url and a text, got {len(addresses)} and {len(texts)} "
            "of them; do: send one picture as a data URI, and a question"
        )
    system = "\n".join(_texts(systems[0])) if systems else None
    return system, "\n".join(texts), addresses[0]


def _texts(message: _Message) -> list[str]:
    content = message.content
    return [content] if isinstance(content, str) else [part.text or "" for part in content]
