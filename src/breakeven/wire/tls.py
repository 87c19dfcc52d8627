"""TLS: what is shown and trusted, and a connection of clients that speaks it.

A server's connection does its own TLS over the bytes of a plain one, so that it is counted, timed and closed like any
other from the moment it is accepted: a client that never finishes its handshake is one more silent client. Contexts can
be made before a fork and are then used by every process that comes of it, without another look at the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from breakeven.errors import UserError

_READ_BYTES = 1 << 16
_JOINED_BYTES = 1 << 14
"""Pieces up to here together become one record, beyond each its own: copying would cost more than a record's frame."""
_NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 40\r\nconnection: close\r\n\r\n"
    b"this port speaks TLS; ask it by https://"
)
SOON_S = 14 * 86400.0
"""A certificate that ends within this time is spoken of."""
_EXPIRED, _NOT_YET = 10, 9
"""OpenSSL's codes of a certificate whose time is over, and of one whose time has not come."""


class TlsFiles(NamedTuple):
    """PEM files. `ca`: whom to trust, None: as the system does. `key` None: it stands with its `certificate`."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


SYSTEMS = TlsFiles()
"""Trust whom the system trusts, show nothing."""
Contexts = dict[tuple[Literal["client", "server"], TlsFiles], ssl.SSLContext]
"""By what they are for and what stands in them."""
_made: Contexts = {}
"""Those made before a fork."""


def use(made: Contexts) -> Contexts:
    """From now on, and in processes that are forked from now on, these are the contexts; returns those before."""
    global _made
    before, _made = _made, made
    return before


def client_tls(files: TlsFiles) -> ssl.SSLContext:
    """For asking servers: their certificates and names are verified. Raises UserError for files that cannot be used."""
    return _made.get(("client", files)) or new_client_tls(files)


def server_tls(files: TlsFiles) -> ssl.SSLContext:
    """For being asked. Raises UserError for a certificate or key that cannot be used."""
    return _made.get(("server", files)) or new_server_tls(files)


def new_client_tls(files: TlsFiles) -> ssl.SSLContext:
    """As `client_tls`, from what stands in the files now."""
    if files.ca is not None and not files.ca.is_file():
        raise UserError(f"ca {files.ca} is no file; give a PEM file of certificates")
    try:
        context = ssl.create_default_context(cafile=files.ca)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"ca {files.ca} cannot be used ({error}); give a PEM file of certificates") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.certificate is not None:
        _load(context, files)
    return context


def new_server_tls(files: TlsFiles) -> ssl.SSLContext:
    """As `server_tls`, from what stands in the files now."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that asks for new keys again and again would have us compute for it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    assert files.certificate is not None
    for path in (files.certificate, files.key):
        if path is not None and not path.is_file():  # a pipe would be waited for
            raise UserError(f"certificate: {path} is no file; give a PEM file")

    def no_password() -> str:
        raise UserError(
            f"certificate: the key in {files.key or files.certificate} has a password, which nobody is there to type; "
            "give a key without one that only this user can read"
        )

    try:
        context.load_cert_chain(files.certificate, files.key, password=no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        place = f"{files.certificate}" + (f" with the key in {files.key}" if files.key else "")
        todo = "give PEM files that belong together"
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            why = "the key is another certificate's"
        elif isinstance(error, ssl.SSLError):
            why = "not a PEM certificate and its key" + (f": {error.reason}" if error.reason else "")
            if files.key is None:
                todo = "name its key's file as `key`, or put both into this one"
        elif isinstance(error, OSError):
            why, todo = error.strerror or str(error), "both must belong to who runs this"
        else:
            why = str(error)
        raise UserError(f"certificate: {place} cannot be used ({why}); {todo}") from None


def why_not_now(context: ssl.SSLContext) -> str:
    """Why clients would refuse what a server's `context` shows though they trust it: its time is over, say; else empty.

    A handshake with it, in memory, tells.
    """
    try:
        _verified(context)
    except ssl.SSLCertVerificationError as error:
        known = {_EXPIRED: "its time is over", _NOT_YET: "its time has not come"}
        return known.get(error.verify_code, error.verify_message)
    except ssl.SSLError as error:
        return f"no handshake comes about with it: {error.reason or error}"
    return ""


def what_to_do(context: ssl.SSLContext, unix_s: float) -> str:
    """For the operator, of what a server's `context` shows: that clients refuse it or soon will; empty: all is well."""
    renew = "renew it, then send SIGHUP"
    if why := why_not_now(context):
        return f"clients refuse the certificate of `tls`: {why}; {renew}"
    ends = (_verified(context).getpeercert() or {}).get("notAfter")
    left_s = ssl.cert_time_to_seconds(str(ends)) - unix_s
    when = f"in {int(left_s // 86400)} days" if left_s >= 2 * 86400 else f"in {max(0, int(left_s // 3600))} h"
    return f"the certificate of `tls` ends {when}; {renew}" if left_s < SOON_S else ""


def _verified(context: ssl.SSLContext) -> ssl.SSLObject:
    """The end of a client that trusts what it is shown and checks all else of it. Raises SSLError."""
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    shown = _met(asking, context).getpeercert(binary_form=True)
    assert shown is not None
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    asking.load_verify_locations(cadata=shown)
    return _met(asking, context)


def _met(asking: ssl.SSLContext, asked: ssl.SSLContext) -> ssl.SSLObject:
    """The asking end of a handshake between two contexts. Raises SSLError."""
    to, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = asking.wrap_bio(back, to), asked.wrap_bio(to, back, server_side=True)
    for _ in range(4):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return client


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """TLS between a plain transport and the protocol of one client's connection, whose transport it is."""

    def __init__(self, above: asyncio.Protocol, context: ssl.SSLContext) -> None:
        super().__init__()
        self._above = above
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._below = cast(asyncio.Transport, None)
        self._early: list[bytes] = []
        """What was written before the handshake had ended."""
        self._open = self._ended = self._closing = self._last = False

    # The side of the plain transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._above.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = self._ended = True
        self._above.connection_lost(exc)

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()

    def eof_received(self) -> None:
        if not self._ended:
            self._above.eof_received()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._in.write(data)
        if not self._open and not self._handshake():
            return
        pieces: list[bytes] = []
        whole = False
        try:
            # To ask for more than there is would raise, which costs more than to look.
            while self._in.pending or self._tls.pending():
                piece = self._tls.read(_READ_BYTES)
                if not piece:
                    whole = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            whole = True
        except ssl.SSLError:
            # Nothing more can be sealed either, so what came before it has nobody to be answered to.
            self._ended = self._closing = True
            self._flush()
            self._below.close()
            return
        self._flush()
        if pieces:
            self._above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if whole and not self._ended:
            self._above.eof_received()
            self.close()

    def _handshake(self) -> bool:
        """One step of it; whether it has ended well."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._ended = True
            if error.reason == "HTTP_REQUEST":
                self._below.write(_NOT_TLS)
            else:
                self._flush()  # why, in TLS's own words
            self._below.close()
            return False
        self._open = True
        early, self._early = self._early, []
        self._flush()
        if early:
            self.writelines(early)
        if self._last:
            self.write_eof()
        return not self._ended

    def _flush(self) -> None:
        if self._out.pending and not self._below.is_closing():
            self._below.write(self._out.read())

    # The side of the protocol above: what it calls of its transport.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing or self._below.is_closing()

    def pause_reading(self) -> None:
        if not self._below.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if not self._below.is_closing():
            self._below.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size() + sum(map(len, self._early))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._open:
            if not self._ended:
                self._early.append(bytes(data))
            return
        if self._closing or not data:
            return
        self._tls.write(data)  # whole: what it becomes waits in memory
        self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        parts = list(list_of_data)
        if not self._open or sum(map(len, parts)) <= _JOINED_BYTES:
            self.write(b"".join(parts))
            return
        if self._closing:
            return
        for part in parts:
            if part:
                self._tls.write(part)
        self._flush()

    def write_eof(self) -> None:
        """Say that nothing more comes. What still comes from the other side is taken, unheeded."""
        self._last = True  # once the handshake has ended, where it has not
        if self._open and not self._ended:
            self._ended = True
            self._goodbye()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        """Close when everything is sent."""
        if self._closing:
            return
        self._closing = True
        if self._open and not self._ended:
            self._goodbye()
        self._ended = True
        self._below.close()

    def abort(self) -> None:
        """Close now."""
        self._closing = self._ended = True
        self._below.abort()

    def _goodbye(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # it wants the other side's, which nobody waits for
            self._tls.unwrap()
        self._flush()
