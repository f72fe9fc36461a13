"""Serves a model by HTTP: a page, an API of our own, and those of other tools."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from pathlib import Path

from seg_jax.cli.model_options import ModelOptions
from seg_jax.models.vlm.running_batch import Sizes
from seg_jax.runs import console
from seg_jax.serving import access, server
from seg_jax.serving.answering import Answering
from seg_jax.serving.app import Service
from seg_jax.serving.limits import Limits

TOKEN = "SEG_JAX_TOKEN"
"""Variable of the environment with the token that requests have to bring."""
LEAST_TOKEN = 16
"""Characters that a token has at least, where others than this machine reach the server."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelOptions):
    """A model that answers at http://HOST:PORT until Ctrl-C.

    Where HOST is not of this machine alone, requests have to bring a token: that of SEG_JAX_TOKEN
    in the environment, or one that is made up and printed.
    """

    host: str = "127.0.0.1"
    """Address of this machine to listen at; 0.0.0.0 for all."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    name: str | None = None
    """What clients call the model; None: the name of its folder."""
    buckets: int | None = None
    """Number of lengths that prompts are cut to, each compiled beforehand; None: as the model's
    layout has it."""
    images: Path | None = None
    """Folder of pictures that clients may name by their paths in it; None: clients send them."""
    batch: Sizes = Sizes()
    limits: Limits = Limits()
    quiet: bool = False
    """Write no line for each request."""

    def __post_init__(self):
        if not 0 <= self.port <= 65_535:
            raise ValueError(
                f"port: expected 0 to 65535, got {self.port}; do: choose another by --port"
            )
        if self.buckets is not None and not 1 <= self.buckets <= 64:
            raise ValueError(
                f"buckets: expected 1 to 64, got {self.buckets}; do: give fewer, each is compiled"
            )
        if self.images is not None and not self.images.is_dir():
            raise ValueError(
                f"images: expected a folder of pictures, got {self.images}; do: name one that is "
                "there"
            )


def main(config: Config) -> int:
    """Serves until it is told to stop."""
    import starlette  # noqa: F401 - what is missing is told before minutes of work
    import uvicorn  # noqa: F401

    config.refuse_segmenter("serve")
    token = _token(config.host)
    listener = server.bind(config.host, config.port)
    try:
        service = _service(config, token)
        running = server.Server(service, listener)
        address = _address(config.host, listener.getsockname()[1])
        console.say(f"serving {service.answering.name} at {address}")
        console.tell(address if token is None else f"{address}#token={token}")
        running.run()
    finally:
        listener.close()
    return 0


def _service(config: Config, token: str | None) -> Service:
    """Returns the service, warmed up."""
    bundle = config.predictor().bundle
    if config.buckets is not None:
        layout = dataclasses.replace(bundle.layout, buckets=config.buckets)
        bundle = dataclasses.replace(bundle, layout=layout)
    answering = Answering(
        bundle,
        sizes=config.batch,
        limits=config.limits,
        grammar=config.grammar,
        name=config.name or config.folder.resolve().name,
    )
    begin = time.monotonic()
    for program in answering.warm_up():
        console.say(f"compiled {program} ({time.monotonic() - begin:.0f} s)")
    answering.start()
    console.say("warm: nothing is compiled from here on")
    return Service(
        answering, access=access.Access(token), images=config.images, shown=not config.quiet
    )


def _token(host: str) -> str | None:
    """Returns what requests have to bring; None where only this machine reaches the server."""
    given = os.environ.get(TOKEN, "")
    if given and (len(given) < LEAST_TOKEN or not given.isascii() or not given.isprintable()):
        raise ValueError(
            f"{TOKEN}: expected at least {LEAST_TOKEN} ASCII characters, got {len(given)}; do: "
            "make one by: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    if given or access.is_loopback(host):
        return given or None
    return secrets.token_urlsafe()


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
