"""What the edge calls: of a head, whether its body is worth keeping; of a request, what is to be done with it.

Who asks, and whether for something that there is, is known before a byte of a body is kept; how a body is built is
known before it is taken apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import unquote

import msgspec

from breakeven.gateway.plan.limits import ANY_PAGE
from breakeven.gateway.plan.reach import ENDPOINTS
from breakeven.gateway.serve.ask import Asked, BadAskError, Client, fields_of, is_form, read_form
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.serve.forward import JSON, say
from breakeven.gateway.shared.layout import Global
from breakeven.gateway.translate.table import Fields
from breakeven.wire.bounds import AT_ONCE, JsonLine, json_refusal
from breakeven.wire.listen import names_here, sent_from_here
from breakeven.wire.message import Headers, Refused, Request, Responder

MODELS = "/v1/models"
AZURE, DEPLOYMENTS = "/openai/", "/openai/deployments/"
FORMS = ("/v1/audio/", "/v1/images/")
"""Where a body may be a form."""
READS = "GET, HEAD"
_MOST_NAMES = 64
_FOREIGN_NAME = "without keys only this machine may ask, by the name 127.0.0.1 or localhost; `keys:` opens it"
_FOREIGN_PAGE = "without keys no pages but this machine's may ask; name this one's Origin in `origins:`, or use `keys:`"
_PREFLIGHT_S = b"600"
_READABLE = (
    b"x-request-id, x-breakeven-request-id, x-breakeven-backend, x-breakeven-reason, x-breakeven-ttft-ms, "
    b"x-breakeven-usd, x-breakeven-alternative, x-breakeven-translated, x-breakeven-left-out, retry-after"
)
"""Headers of our answers that a page may read too."""


class Front:
    """What the edge calls for each request."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._endpoints = frozenset(ENDPOINTS)
        self._names: set[bytes | None] = {None}
        """Hosts that were found to name this machine; no browser sends none."""
        self._cors = frozenset(origin.encode() for origin in desk.plan.cors)
        self._any_page = ANY_PAGE in desk.plan.cors
        self._origins = frozenset(origin.encode() for origin in desk.plan.origins) | self._cors
        self._depth, self._keys = desk.plan.limits.json_depth, desk.plan.limits.json_keys
        self._large = JsonLine(desk.loop, self._depth, self._keys)

    def judge(self, request: Request) -> bool:
        """Whether a body is worth keeping, by the head before it: path, method, key, and without keys who asks."""
        if request.method != "POST" or _place_of(request.path)[0] not in self._endpoints:
            return False
        if self._desk.keys is None and self._strange(request):
            return False
        request.known = self._desk.client_of(request)
        return request.known is not None

    def handle(self, request: Request, responder: Responder) -> None:
        """The edge's handler."""
        path, deployment = _place_of(request.path)
        if self._cors and self._is_preflight(request, responder):
            responder.respond(204, [], b"")
        elif self._desk.keys is None and self._strange(request):
            say(responder, 403, _FOREIGN_PAGE if names_here(request.header(b"host")) else _FOREIGN_NAME, "forbidden")
        elif path in self._endpoints:
            client = known if isinstance(known := request.known, Client) else self._desk.client_of(request)
            if client is None:
                ask_for_key(responder)
            elif request.method != "POST":
                only(responder, path, "POST")
            else:
                self._look(request, responder, client, path, deployment)
        elif path == MODELS or path.startswith(MODELS + "/"):
            self._models(request, responder, path)
        elif path in ("/health", "/ready"):
            if request.method not in ("GET", "HEAD"):
                only(responder, path, READS)
            elif path == "/health":
                responder.respond(200, [JSON], b'{"status":"ok"}')
            else:
                ready = self._desk.is_ready()
                responder.respond(200 if ready else 503, [JSON], b'{"ready":%s}' % (b"true" if ready else b"false"))
        else:
            told = f"there is no {request.path[:200]} here; this gateway serves {', '.join(ENDPOINTS)}"
            say(responder, 404, told, None)

    def _look(self, request: Request, responder: Responder, client: Client, path: str, deployment: str | None) -> None:
        """A whole body. A large one is seen, taken apart and sent on in rounds of the loop of their own."""
        body = request.body
        kind = request.header(b"content-type")
        if kind is not None and path.startswith(FORMS) and is_form(kind):
            _whole(
                responder,
                lambda: self._desk.ask(request, responder, client, path, _form_of(request, kind, deployment)),
            )
        elif len(body) > AT_ONCE:
            seen = partial(self._seen, request, responder, client, path, deployment)
            self._large.add(body, lambda: responder.gone, seen)
        elif (refusal := json_refusal(body, self._depth, self._keys)) is not None:
            say(responder, refusal.status, refusal.message, refusal.code)
        elif deployment is None:
            self._desk.ask(request, responder, client, path)
        else:
            _whole(
                responder,
                lambda: self._desk.ask(request, responder, client, path, Asked(fields_of(body, deployment))),
            )

    def _seen(
        self,
        request: Request,
        responder: Responder,
        client: Client,
        path: str,
        deployment: str | None,
        refusal: Refused | None,
    ) -> None:
        def work() -> None:
            if refusal is None:
                fields = fields_of(request.body, deployment)
                self._desk.loop.call_soon(_whole, responder, lambda: send(fields))
            else:
                say(responder, refusal.status, refusal.message, refusal.code)

        def send(fields: Fields) -> None:
            if not responder.gone:
                self._desk.ask(request, responder, client, path, Asked(fields))

        _whole(responder, work)

    def shared_with(self, origin: bytes) -> Headers:
        """Headers by which a page may read an answer (CORS); none where no page of this origin may."""
        if not (self._cors and (self._any_page or origin.lower() in self._cors)):
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", _READABLE),
        )

    def _is_preflight(self, request: Request, responder: Responder) -> bool:
        """Whether a browser asks what a page may do; whatever is answered to one that may says that it may."""
        origin = request.header(b"origin")
        if origin is None or not (shared := self.shared_with(origin)):
            return False
        responder.also = shared
        if request.method != "OPTIONS" or request.header(b"access-control-request-method") is None:
            return False
        asked = request.header(b"access-control-request-headers")
        responder.also = [
            *shared,
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", _PREFLIGHT_S),
            *([] if asked is None else [(b"access-control-allow-headers", asked)]),
        ]
        if request.header(b"access-control-request-private-network") == b"true":
            responder.also = [*responder.also, (b"access-control-allow-private-network", b"true")]
        return True

    def _strange(self, request: Request) -> bool:
        """Whether no key is asked, and somebody asks whom no such listener serves."""
        if self._desk.keys is not None or request.known is not None or not request.path.startswith(("/v1", AZURE)):
            return False
        return not self._meant_for_us(request)

    def _meant_for_us(self, request: Request) -> bool:
        """Whether it came by a name of this machine, and from no page of another."""
        host = request.header(b"host")
        if host not in self._names:
            if not names_here(host):
                return False
            if len(self._names) < _MOST_NAMES:
                self._names.add(host)
        return sent_from_here(request.header(b"origin"), self._origins)

    def _models(self, request: Request, responder: Responder, path: str) -> None:
        """What this client may ask for: the listing, or one of it, its name percent-encoded or not."""
        desk = self._desk
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
        wanted = unquote(path.removeprefix(MODELS + "/"))
        if wanted in names:
            responder.respond(200, [JSON], msgspec.json.encode(_model(wanted, started)))
        else:
            say(responder, 404, f"there is no model {wanted[:200]!r} for you here", "model_not_found")


def _place_of(path: str) -> tuple[str, str | None]:
    """A path as we call it, and the model that Azure's clients name in theirs."""
    if not path.startswith(AZURE):
        return path, None
    if path.startswith(DEPLOYMENTS):
        name, _, rest = path.removeprefix(DEPLOYMENTS).partition("/")
        return f"/v1/{rest}", unquote(name)
    return "/v1/" + path.removeprefix(AZURE).removeprefix("v1/"), None


def _form_of(request: Request, kind: bytes, deployment: str | None) -> Asked:
    if sum(name == b"content-type" for name, _ in request.headers) > 1:
        raise BadAskError("a form has one Content-Type")  # both would reach the backend
    return read_form(request.body, kind, deployment)


def _whole(responder: Responder, work: Callable[[], None]) -> None:
    """Work in a round of its own, where nobody else sees to the client when it fails."""
    try:
        work()
    except BadAskError as error:
        say(responder, 400, str(error), "invalid_request")
    except Refused as refused:
        say(responder, refused.status, refused.message, refused.code)
    except Exception:
        responder.abort()
        raise


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "breakeven"}


def ask_for_key(responder: Responder) -> None:
    """Whoever comes without a key of ours hears the same, whatever was wrong with it."""
    message = "this gateway asks for a key: Authorization: Bearer KEY, x-api-key: KEY or api-key: KEY"
    say(responder, 401, message, "invalid_api_key")


def only(responder: Responder, path: str, methods: str) -> None:
    """Another method is right for this path."""
    message = f"{path[:200]} takes {methods}"
    say(responder, 405, message, "method_not_allowed", [(b"allow", methods.encode())])
