"""Whether a request was meant for this machine: the names it may be called by, and the page that sent it.

A listener that asks for no key trusts whoever can reach it. So it must not be reached through a browser: a page on the
web may have its own name point at 127.0.0.1 (DNS rebinding; it then stands in `Host`), or send a form or a `fetch`
without looking at the answer (it then stands in `Origin`).
"""

from __future__ import annotations

import ipaddress

_WEB = (b"http://", b"https://")


def names_here(host: bytes | None) -> bool:
    """Whether a Host header names this machine's loopback; its port does not matter."""
    name = without_port((host or b"").decode("latin-1"))
    return name.lower().rstrip(".") == "localhost" or is_loopback_address(name)


def sent_from_here(origin: bytes | None) -> bool:
    """Whether an Origin header is absent, or of a page of this machine, or of a program that is no web page.

    "null", which sandboxed frames send, is nobody's.
    """
    if origin is None:
        return True
    scheme, slashes, host = origin.lower().partition(b"://")
    if scheme + slashes not in _WEB:
        return bool(slashes)
    return names_here(host)


def is_loopback_address(text: str) -> bool:
    """Whether an address, in any of its spellings, is this machine's own."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def without_port(text: str) -> str:
    """The host of `host`, `host:port`, `[v6]` or `[v6]:port`."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
