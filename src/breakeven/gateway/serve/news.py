"""How the watching process hears of a new plan: one message through a pair of sockets. It forks nothing and reads no
file itself, because it holds engines and threads."""

from __future__ import annotations

import asyncio
import pickle
import socket
from typing import NamedTuple

from breakeven.gateway.keys.entry import KeyEntry
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.shared.layout import Rows

_LENGTH = 8


class News(NamedTuple):
    """A plan that is served from now on."""

    plan: GatewayPlan
    keys: tuple[KeyEntry, ...] | None
    rows: Rows


def send_news(to: socket.socket, plan: GatewayPlan, keys: tuple[KeyEntry, ...] | None, rows: Rows) -> None:
    """Tell the watching process. It may take its time: what is sent waits in the socket."""
    said = pickle.dumps(News(plan, keys, rows))
    to.sendall(len(said).to_bytes(_LENGTH, "big") + said)


async def next_news(reader: asyncio.StreamReader) -> News:
    """Wait for the next plan."""
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    news: News = pickle.loads(await reader.readexactly(length))
    return news
