"""The gateway's paths. They are compared as they were sent: what is not a known one, however it is written, is 404."""

from __future__ import annotations

import msgspec

from breakeven.gateway.plan.model import ENDPOINTS
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.serve.say import JSON, ask_for_key, only, say
from breakeven.gateway.shared.layout import Global
from breakeven.wire.listen import names_here, sent_from_here
from breakeven.wire.message import Request, Responder

MODELS = "/v1/models"
READS = "GET, HEAD"
_MOST_NAMES = 64


class Front:
    """What the edge calls for each request."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._endpoints = frozenset(ENDPOINTS)
        self._names: set[bytes | None] = {None}
        """Hosts that were found to name this machine; no browser sends none."""

    def handle(self, request: Request, responder: Responder) -> None:
        """The edge's handler."""
        path = request.path
        if self._desk.keys is None and path.startswith("/v1") and not self._meant_for_us(request):
            message = "without keys only this machine may ask, by the name 127.0.0.1 or localhost; `keys:` opens it"
            say(responder, 403, message, "forbidden")
        elif path in self._endpoints:
            client = self._desk.client_of(request)
            if client is None:
                ask_for_key(responder)
            elif request.method != "POST":
                only(responder, path, "POST")
            else:
                self._desk.ask(request, responder, client, path)
        elif path == MODELS or path.startswith(MODELS + "/"):
            self._models(request, responder)
        elif path in ("/health", "/ready"):
            if request.method not in ("GET", "HEAD"):
                only(responder, path, READS)
            elif path == "/health":
                responder.respond(200, [JSON], b'{"status":"ok"}')
            else:
                ready = self._desk.is_ready()
                responder.respond(200 if ready else 503, [JSON], b'{"ready":%s}' % (b"true" if ready else b"false"))
        else:
            say(responder, 404, f"there is no {path[:200]} here; this gateway serves {', '.join(ENDPOINTS)}", None)

    def _meant_for_us(self, request: Request) -> bool:
        """Whether it came by a name of this machine, and from no page of another."""
        host = request.header(b"host")
        if host not in self._names:
            if not names_here(host):
                return False
            if len(self._names) < _MOST_NAMES:
                self._names.add(host)
        return sent_from_here(request.header(b"origin"))

    def _models(self, request: Request, responder: Responder) -> None:
        """What this client may ask for: the listing, or one of it."""
        desk, path = self._desk, request.path
        client = desk.client_of(request)
        if client is None:
            ask_for_key(responder)
            return
        if request.method not in ("GET", "HEAD"):
            only(responder, path, READS)
            return
        entry = client.entry
        names = [name for name in desk.models if entry is None or entry.may(name)]
        started = int(desk.block.everywhere.get(0, 0, Global.STARTED_S))
        if path == MODELS:
            listing = {"object": "list", "data": [_model(name, started) for name in names]}
            responder.respond(200, [JSON], msgspec.json.encode(listing))
            return
        wanted = path.removeprefix(MODELS + "/")
        if wanted in names:
            responder.respond(200, [JSON], msgspec.json.encode(_model(wanted, started)))
        else:
            say(responder, 404, f"there is no model {wanted[:200]!r} for you here", "model_not_found")


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "breakeven"}
