"""Who may ask: holders of the token, or on this machine alone nobody's pages but our own."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from seg_jax.serving import faults

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names by which a browser on this machine knows it."""


def is_loopback(host: str) -> bool:
    """Returns whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access(NamedTuple):
    """What a request has to show."""

    token: str | None
    """What requests have to bring; None: nothing, where only this machine reaches the server."""

    def check(self, headers: Mapping[str, str]) -> None:
        """Lets a request pass.

        Args:
          headers: by their names in lower case.

        Raises:
          NoToken: it does not bring the token.
          Foreign: a page of another origin sends it, or it calls this machine by another name.
        """
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host", ""):
            raise faults.Foreign(
                "origin: expected the page of this server, got another; do: ask from a program, or "
                "from this server's own page"
            )
        if self.token is None:
            # A name of somebody else's that leads here would make its page one of our origin.
            name = urlsplit(f"//{headers.get('host', '')}").hostname
            if name not in LOCAL_NAMES:
                raise faults.Foreign(
                    "host: expected localhost or 127.0.0.1, got another name; do: ask by one of "
                    "these, or start the server with a token (SEG_JAX_TOKEN)"
                )
        elif not hmac.compare_digest(_token_in(headers).encode(), self.token.encode()):
            raise faults.NoToken(
                "token: expected the one that the server was started with, got none or another; "
                "do: send it as 'Authorization: Bearer TOKEN'"
            )


def _token_in(headers: Mapping[str, str]) -> str:
    """Returns the token that a request brings: as bearer, as password or as X-AnyLabeling does."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return headers.get("token", "")
