"""A backend: an engine with a model loaded, reachable at a URL.

What is measured only ever sees this value; how the engine was started, and by whom, stays with whoever started it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from breakeven.errors import UserError
from breakeven.hardware.placement import Placed
from breakeven.hardware.system import unix_socket
from breakeven.version import __version__
from breakeven.wire.dialects import Dialect, dialect_of
from breakeven.wire.listen import names_here
from breakeven.wire.target import V1, endpoint_at
from breakeven.wire.tls import client_tls

LLAMA_CPP = "llama.cpp"
LLAMA_SERVER = "llama-server"
"""llama.cpp too, as the user's own executable."""
VLLM = "vllm"
MLX = "mlx"
SGLANG = "sglang"
OLLAMA = "ollama"
LM_STUDIO = "lmstudio"
OWN_KEY, OPENAI_KEY = "BREAKEVEN_API_KEY", "OPENAI_API_KEY"
KEY_VARIABLES = (OWN_KEY, OPENAI_KEY)
"""Environment variables a key may come from."""
OPENAI_HOST = "api.openai.com"
IN_CLEAR = "BREAKEVEN_KEY_OVER_HTTP"
"""Environment variable that names the hosts, separated by commas, that may be sent a key without TLS."""

_TOKENIZE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of one process, or of several added up, in bytes.

    `peak_rss_bytes` is its high-water mark, the other two are as of now. Marks of several processes need not have
    been reached at one time, and pages they share count once for each: their sum is an upper bound.

    Anonymous pages are what the engine allocated (KV cache, compute buffers, repacked copies of weights); file
    pages are the mapped weight file.
    """

    peak_rss_bytes: int
    anonymous_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Backend:
    """Where to send requests for one model, and what is known of the engine behind it.

    `url` ends before `/v1`, which is `under`; a base URL without it leaves that empty. `model` is what the study calls
    it. `api_key_env` is the *name* of the environment variable that holds the key, never the key. `settings` repeats
    the run: engine, build and flags as strings. `pid` and `load_s` are None for an engine we did not start. `placed`:
    what lies where, None where it does not tell. `spoken`: how it is asked, None: as its engine is.
    """

    url: str
    model: str
    api_key_env: str | None
    settings: dict[str, str]
    pid: int | None
    load_s: float | None
    placed: Placed | None = None
    under: str = V1
    spoken: Dialect | None = None

    @property
    def engine(self) -> str:
        """Name of the engine, "unknown" when it does not tell."""
        return self.settings.get("engine", "unknown")

    @property
    def dialect(self) -> Dialect:
        """How it is asked, and what it has."""
        return self.spoken or dialect_of(self.engine)

    @property
    def served_model(self) -> str:
        """The name the server knows the model by, where a study calls it otherwise."""
        return self.settings.get("served_model", self.model)

    @property
    def takes_token_ids(self) -> bool:
        """True when `/v1/completions` accepts a list of token ids as its prompt."""
        return self.dialect.token_ids and not self.chat_only

    @property
    def takes_extra_fields(self) -> bool:
        """True when it neither refuses fields beyond OpenAI's, such as `ignore_eos`, nor passes them over."""
        return self.settings.get("extra_fields") != "refused" and self.dialect.extra_fields

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens at which it ends a text, as far as they are known."""
        return tuple(int(token) for token in self.settings.get("end_tokens", "").split())

    @property
    def chat_only(self) -> bool:
        """True when it has no `/v1/completions`, so that every prompt goes out as a chat message."""
        return self.settings.get("route") == "chat"

    def headers(self) -> dict[str, str]:
        """HTTP headers every request needs; the key is read from the environment here and kept nowhere.

        Raises UserError for a key that no header can hold.
        """
        key = self.key
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"the key in {self.api_key_env} holds a line break or another character that no header can hold; "
                "set it anew"
            )
        sent = [self.dialect.key_line(key)] if key else []
        return {name.title(): value for name, value in (*self.dialect.headers.items(), *sent)}

    @property
    def key(self) -> str:
        """Its key, for who keeps it out of what is written; empty: it has none."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else ""

    def below(self, path: str) -> str:
        """An endpoint (`/v1/...`), or another path of the server, below `url`, with its parameters."""
        return endpoint_at(self.under, path, self.dialect.query_at(urlsplit(self.url).path))

    def target(self, path: str) -> str:
        """The same in a request line."""
        return urlsplit(self.url).path + self.below(path)

    def ask(self, path: str, fields: Mapping[str, object] | None, *, timeout_s: float) -> HTTPResponse:
        """Get `path`, or post these fields there. Raises OSError (HTTPError for a status of 400 or more).

        UserError for a key that no header can hold.
        """
        parts = urlsplit(self.url)
        data = None if fields is None else json.dumps(fields).encode()
        headers = {"Content-Type": "application/json", "User-Agent": f"breakeven/{__version__}", **self.headers()}
        where = f"{parts.scheme}://{parts.netloc}{self.target(path)}"
        return open_url(urllib.request.Request(where, data, headers), timeout_s=timeout_s, dialect=self.dialect)

    def memory(self) -> MemoryUse | None:
        """Memory of the engine's processes, None when it is not ours, has ended, or the system does not tell."""
        return tree_memory(self.pid) if self.pid is not None else None

    def peak_rss_bytes(self) -> int | None:
        """Largest resident set the engine's processes have had so far, in bytes; None as for `memory`."""
        memory = self.memory()
        return memory.peak_rss_bytes if memory else None

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of `text` without special tokens, None when this engine has no way to ask."""
        fields = self.dialect.tokenize_fields(self.served_model, text)
        if fields is None:
            return None
        try:
            with self.ask("/tokenize", fields, timeout_s=_TOKENIZE_TIMEOUT_S) as response:
                tokens = json.load(response).get("tokens")
        except (OSError, HTTPException, ValueError, AttributeError):
            return None
        return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None


def process_memory(pid: int) -> MemoryUse | None:
    """Memory of process `pid`, from `/proc/PID/status` (VmHWM, RssAnon, RssFile); None when it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            sizes[name] = int(words[0]) * 1024
    if "VmHWM" not in sizes:  # a zombie has no memory lines left
        return None
    return MemoryUse(sizes["VmHWM"], sizes.get("RssAnon", 0), sizes.get("RssFile", 0))


def tree_memory(pid: int) -> MemoryUse | None:
    """Memory of process `pid` and all its descendants, added up; None when `pid` itself cannot be read."""
    own = process_memory(pid)
    if own is None:
        return None
    uses = [own, *(use for child in _descendants(pid) if (use := process_memory(child)))]
    return MemoryUse(
        sum(use.peak_rss_bytes for use in uses),
        sum(use.anonymous_bytes for use in uses),
        sum(use.file_bytes for use in uses),
    )


def _descendants(pid: int) -> list[int]:
    """Processes below `pid` in the system's table, which is read once."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; the parent is the second word after it.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def open_url(
    request: urllib.request.Request | str, *, timeout_s: float, dialect: Dialect | None = None
) -> HTTPResponse:
    """Open a URL without any proxy but the one that `dialect` names, as the load client does.

    Raises OSError (HTTPError for a status of 400 or more).
    """
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    proxy = dialect.proxy if dialect is not None else ""
    handlers.append(urllib.request.ProxyHandler({"https": proxy} if proxy else {}))
    if dialect is not None and dialect.socket:
        handlers.append(_Through(dialect.socket))
    elif dialect is not None and (dialect.ca or dialect.certificate):
        handlers.append(urllib.request.HTTPSHandler(context=client_tls(dialect.tls_files)))
    opener = urllib.request.build_opener(*handlers)
    response: HTTPResponse = opener.open(request, timeout=timeout_s)
    return response


class _Through(urllib.request.HTTPHandler):
    """Through a unix socket, whatever host a URL names."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        path = self._path

        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = unix_socket(path, float(self.timeout or _TOKENIZE_TIMEOUT_S))

        return self.do_open(Connection, req)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following one could carry a key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


def key_variable(url: str, *, here: bool = False) -> str | None:
    """Name of the environment variable whose key goes to `url`, None when none does.

    OPENAI_API_KEY goes to OpenAI's own host and to nobody else, BREAKEVEN_API_KEY to whoever is named. `here`: by a way
    that leaves this machine nowhere. Raises UserError where a key would cross a network in clear.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    names = (OPENAI_KEY, OWN_KEY) if host == OPENAI_HOST else (OWN_KEY,)
    found = next((name for name in names if os.environ.get(name)), None)
    if found is not None and not here:
        check_in_clear(url, found)
    return found


def check_in_clear(url: str, variable: str) -> None:
    """Raise UserError when the key in `variable` would go to `url` without TLS, to another machine, unasked."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    allowed = {each.strip().lower().rstrip(".") for each in os.environ.get(IN_CLEAR, "").split(",")}
    if parts.scheme.lower() == "https" or names_here(host.encode()) or host in allowed:
        return
    raise UserError(
        f"{parts.scheme}://{host} would get the key in {variable} in clear, for everybody on the way to read; use "
        f"https, unset {variable}, or allow it with {IN_CLEAR}={host}"
    )
