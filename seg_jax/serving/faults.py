"""What a client is told instead of an answer: an HTTP status and one line."""

from __future__ import annotations


class Fault(Exception):
    """A request that is not answered; its text is for the client, one line."""

    status = 400
    """HTTP status."""
    kind = "invalid_request_error"
    """What OpenAI's clients sort errors by."""
    retry_after: int | None = None
    """Seconds after which it is worth asking again; None: never."""


class Refused(Fault):
    """A request that is wrong in itself."""


class TooLarge(Fault):
    """A body, a picture or a question beyond the limits."""

    status = 413


class NoToken(Fault):
    """A request without the server's token."""

    status, kind = 401, "authentication_error"


class Foreign(Fault):
    """A request that a page of somebody else's, or another name of this machine, has sent."""

    status, kind = 403, "permission_error"


class Busy(Fault):
    """More requests than there is room for."""

    status, kind = 429, "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(Fault):
    """The server is about to end."""

    status, kind, retry_after = 503, "server_error", 10


class TooSlow(Fault):
    """There was no answer within the time that a request may take."""

    status, kind = 504, "timeout_error"


class Broken(Fault):
    """An error of the server's own; its log says which."""

    status, kind = 500, "server_error"
