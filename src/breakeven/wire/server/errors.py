"""Errors as OpenAI's clients expect them, for everybody who refuses a request."""

from __future__ import annotations

import msgspec

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """What a client sent cannot be served: `status` and `code` for it, the text says what to do."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Detail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: None
    code: str | None


class _Body(msgspec.Struct, frozen=True):
    error: _Detail


_encode = msgspec.json.Encoder().encode


def error_body(status: int, message: str, kind: str | None = None, code: str | None = None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`; without `kind` the type that OpenAI uses for `status`."""
    if kind is None:
        kind = _KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return _encode(_Body(_Detail(message, kind, None, code)))
