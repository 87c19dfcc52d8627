"""Answers of the gateway's own: errors in OpenAI's form, and small JSON documents."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.wire.message import Responder, error_body

JSON = (b"content-type", b"application/json")


def say(
    responder: Responder,
    status: int,
    message: str,
    code: str | None,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """An error that tells the client what to do."""
    responder.respond(status, [JSON, *headers], error_body(status, message, None, code))


def ask_for_key(responder: Responder) -> None:
    """Whoever comes without a key of ours hears the same, whatever was wrong with it."""
    say(responder, 401, "this gateway asks for a key: Authorization: Bearer KEY", "invalid_api_key")


def only(responder: Responder, path: str, methods: str) -> None:
    """Another method is right for this path."""
    message = f"{path[:200]} takes {methods}"
    say(responder, 405, message, "method_not_allowed", [(b"allow", methods.encode())])
