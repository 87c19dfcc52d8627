"""Certificates of an authority of the tests' own, made by the openssl of this machine, and a proxy that opens ways."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
HERE = "DNS:localhost,IP:127.0.0.1"
LONG_AGO = ("20200101000000Z", "20200102000000Z")
_CONFIG = """\
[ca]
default_ca = own
[own]
database = {home}/index.txt
new_certs_dir = {home}
certificate = {home}/ca.pem
private_key = {home}/ca.key
default_md = sha256
policy = names
copy_extensions = copy
unique_subject = no
rand_serial = yes
[names]
commonName = supplied
"""


class Authority:
    """Signs certificates; `ca` is its own."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.ca = home, home / "ca.pem"
        (home / "index.txt").touch()
        (home / "ca.cnf").write_text(_CONFIG.format(home=home))
        self._run(
            "req", "-x509", *_KEY, "-subj", "/CN=tests", "-keyout", home / "ca.key", "-out", self.ca, "-days", "9"
        )

    def sign(self, name: str, names: str = HERE, dates: tuple[str, str] | None = None) -> tuple[Path, Path]:
        """Certificate and key, `name`.pem and `name`.key, for these names, today or at other `dates`."""
        made, key, asked = (self.home / f"{name}.{end}" for end in ("pem", "key", "csr"))
        named = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"]
        self._run("req", "-new", *_KEY, *named, "-keyout", key, "-out", asked)
        when = ["-days", "60"] if dates is None else ["-startdate", dates[0], "-enddate", dates[1]]
        whole = ["-config", self.home / "ca.cnf", "-batch", "-notext", "-in", asked, "-out", made]
        self._run("ca", *whole, *when)
        return made, key

    def _run(self, *words: str | Path) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def shown_by(port: int, ca: Path) -> str:
    """The common name of the certificate that a server on this machine shows, once it is verified."""
    import socket

    trusting = ssl.create_default_context(cafile=ca)
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with trusting.wrap_socket(plain, server_hostname="localhost") as client:
        told = client.getpeercert()
    assert told is not None
    return str(dict(pair[0] for pair in told["subject"])["commonName"])


class Proxy:
    """What an HTTP proxy was asked for, and by how many connections."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[bytes] = []
        self.passed = b""


@asynccontextmanager
async def proxy(to_port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> AsyncIterator[Proxy]:
    """A proxy on this machine whose every way leads to one port here, whatever name it was asked for."""
    kept = Proxy()

    async def pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                kept.passed += data
                to.write(data)
                await to.drain()
        to.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if b" 200 " not in answer:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)
        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    kept.port = server.sockets[0].getsockname()[1]
    try:
        yield kept
    finally:
        server.close()
