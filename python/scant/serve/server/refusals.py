"""What is answered instead of an answer: a status, and OpenAI's object of an error."""

from __future__ import annotations

import json
import math

from scant.errors import Closed, InvalidArgument, Resource

__all__ = ["Left", "Refusal", "draining", "overloaded", "refusal_of"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_RETRY_S_MAX = 60.0  # clients of OpenAI heed no longer time


class Refusal(Exception):  # noqa: N818 - to its client it is an answer
    """Ends a request; `param` names the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.more_headers = headers

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        return _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )

    def body(self) -> bytes:
        """The object, as JSON."""
        error = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Without type and length of the body."""
        found = list(self.more_headers)
        if self.retry_after_s is not None:
            seconds = max(1, math.ceil(min(self.retry_after_s, _RETRY_S_MAX)))
            found.append((b"retry-after", b"%d" % seconds))
        if self.status == 504:  # a client that tries again at once makes it worse
            found.append((b"x-should-retry", b"false"))
        return found


class Left(Exception):  # noqa: N818 - nobody is there to be told
    """The connection is gone, so nothing is answered; the text is the reason for the figures."""


def overloaded(message: str, retry_after_s: float = 1.0) -> Refusal:
    """429: all that may wait is waiting."""
    return Refusal(429, message, code="overloaded", retry_after_s=retry_after_s)


def draining() -> Refusal:
    """503: the server is about to end."""
    text = "the server is shutting down and takes no new requests"
    return Refusal(503, text, code="draining", retry_after_s=5.0)


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error of the engine or of the front."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Resource):
        return overloaded(str(error), float(getattr(error, "retry_after_s", None) or 1.0))
    if isinstance(error, InvalidArgument):
        return Refusal(400, str(error))
    if isinstance(error, Closed):
        return draining()
    return Refusal(500, "the server failed; its log says more", code="internal_error")
