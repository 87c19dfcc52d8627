"""Where a backend is and what it is told of us: taken apart once, when the gateway starts."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from breakeven.errors import UserError


def parts_of(base_url: str) -> tuple[SplitResult, int]:
    """An address and its port. Raises UserError for what is no address of a backend; its text holds no password."""
    try:
        parts = urlsplit(base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise UserError(f"a backend's url cannot be read ({error}); write it as http://HOST:PORT") from error
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"the url of the backend at {parts.hostname} holds a password; put it in an environment variable and "
            "name that in `api_key_env`"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"{base_url!r} is no address of a backend; write it as http://HOST:PORT or https://HOST/PATH")
    if not (base_url.isascii() and base_url.isprintable() and " " not in base_url):
        raise UserError(f"{base_url!r} holds characters that no request can hold; write them percent-encoded")
    return parts, port


def fixed_lines(netloc: str, secret: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The header lines that every request carries. Raises UserError for a key that no header can hold."""
    for name, value in secret:
        if not all(32 <= byte < 127 for byte in name + value):
            raise UserError(
                f"the key for {netloc} ({name.decode(errors='replace')}) holds a line break or another character "
                "that no header can hold; set its environment variable anew"
            )
    return b"".join(b"%s: %s\r\n" % pair for pair in ((b"host", netloc.encode()), *secret))


def tls_of(ca_file: Path | None) -> ssl.SSLContext:
    """Certificates and names are verified; `ca_file` holds the authorities to trust instead of the system's.

    Raises UserError for a file that cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"ca_file {ca_file} cannot be used ({error}); give a PEM file of certificates") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
