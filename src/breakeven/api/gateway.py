"""Verbs around the gateway: serving, its keys, and what its decision log tells.

Nothing is imported before a verb is called: the processes that serve hold what this file holds.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from breakeven.errors import UserError

if TYPE_CHECKING:
    from breakeven.gateway.keys.entry import KeyEntry, KeyLimit
    from breakeven.gateway.plan.model import GatewayPlan
    from breakeven.gateway.seen.record import DecisionRecord
    from breakeven.gateway.seen.snapshot import ExperimentState
    from breakeven.traffic.workload import Slo

EXPLAIN_SCHEMA = "breakeven.explain/1"
KEYS_FILE = "keys.json"
MOST_S = 1_000_000 * 86_400.0
"""Of a key: what a date can still be told of."""


def serve(
    *what: str,
    decision: Path | str | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    admin_port: int | None = None,
    check: bool = False,
    emit: str | None = None,
    out: Path | str | None = None,
    kv: str | None = None,
    engine: str | None = None,
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
) -> int:
    """Serve a gateway file, models, or a saved decision, as `breakeven serve` does, until SIGTERM; the exit status.

    `emit`, "kubernetes": write a decision's manifests into the new directory `out` (None: `kubernetes` beside it).
    Of models that are started, `kv`: type of the keys and values; `engine`, None: the built-in llama.cpp; `gpu_layers`,
    `cpu_moe`, `device`, `tensor_split`: where weights lie, as for `compare`. With `check` what would be served is only
    checked. It forks, so call it from a program that runs no threads and no event loop. Raises UserError for what
    cannot be served.
    """
    from breakeven.gateway.serve.run import emitted, run, source_of

    saved = None if decision is None else Path(decision)
    if emit is not None:
        told = (host, port, workers, admin_port, kv, engine, gpu_layers, cpu_moe, device, tensor_split)
        if check or any(each is not None for each in told):
            raise UserError("--emit takes --from and --out alone; change the rest in the files that it writes")
        return emitted(emit, what, saved, None if out is None else Path(out))
    if out is not None:
        raise UserError("--out is where --emit writes; give both, or neither")
    placement = {"gpu_layers": gpu_layers, "cpu_moe": cpu_moe, "device": device, "tensor_split": tensor_split}
    read = source_of(
        what,
        saved,
        host=host,
        port=port,
        workers=workers,
        admin_port=admin_port,
        kv=kv,
        engine=engine,
        placement=placement,
    )
    return run(read, check_only=check)


class Explanation(msgspec.Struct, frozen=True):
    """Why a request went where it went. `text` says it in words, and so does `str`.

    `chosen`: the backend the log names; `could_choose`: those the policy's rules give again, None where no rule is
    known; `record`: what the log holds.
    """

    schema: str
    chosen: str
    could_choose: list[str] | None
    text: str
    record: DecisionRecord

    def __str__(self) -> str:
        return self.text


def explain(request_id: str, log: Path | str | None = None, gateway: Path | str | None = None) -> Explanation:
    """Why a request went where it went, from the decision log's directory or that of the gateway in a file.

    Raises UserError when the log does not hold it.
    """
    from breakeven.gateway.route.replay import chosen, could_choose
    from breakeven.gateway.route.replay import explain as words
    from breakeven.gateway.seen.read_log import find

    directory, _ = _log_directory(log, gateway)
    record = find(directory, request_id)
    if record is None:
        raise UserError(
            f"{directory} holds no request {request_id}; it is written when the request ends, and old files are "
            "removed (`log.keep`)"
        )
    return Explanation(EXPLAIN_SCHEMA, chosen(record), could_choose(record), words(record), record)


class ExperimentVerbs:
    """`breakeven experiment`: its verbs; never made."""

    @staticmethod
    def status(log: Path | str | None = None, gateway: Path | str | None = None) -> list[ExperimentState]:
        """How a gateway's experiments stand, as it saved them beside its log; with its file, computed from the log.

        Raises UserError when there are none.
        """
        from breakeven.gateway.experiment.watch import status

        return status(*_log_directory(log, gateway))


def _log_directory(log: Path | str | None, gateway: Path | str | None) -> tuple[Path, GatewayPlan | None]:
    """The directory given, else the one that the gateway's file names; with that file's plan, where one is given."""
    plan = None
    directory = None if log is None else Path(log)
    if gateway is not None:
        from breakeven.gateway.plan.check import ALL_SET
        from breakeven.gateway.plan.load import read_gateway

        plan = read_gateway(Path(gateway), ALL_SET)
        directory = directory or plan.log.directory
        if directory is None:
            raise UserError(f"{gateway}: it keeps no decision log; set `log.directory`, or give --log DIR")
    if directory is None:
        raise UserError("give --log DIR, the directory of the decision log, or --gateway FILE, the gateway's file")
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; `log.directory` in the gateway's file says where its log is")
    return directory, plan


class KeyVerbs:
    """`breakeven keys`: its verbs; never made."""

    @staticmethod
    def create(
        name: str,
        file: Path | str = KEYS_FILE,
        *,
        models: Sequence[str] = (),
        limits: Sequence[str] = (),
        usd: Sequence[str] = (),
        slo: str = "",
        priority: int = 0,
        expires: str = "",
        admin: bool = False,
    ) -> str:
        """Make a key and return its secret, of which the file keeps only a digest.

        `limits` as "1000 requests/min", `usd` as "5/day", `slo` as "ttft=1s,tpot=50ms", `expires` as "30d" or a date.
        Raises UserError for what is none of these, or a name that is taken.
        """
        from breakeven.gateway.keys import store

        return store.create(
            Path(file),
            name,
            models=tuple(models),
            admin=admin,
            limits=_limits(limits, usd),
            slo=_slo(slo),
            priority=priority,
            expires=expiry(expires),
        )

    @staticmethod
    def revoke(name: str, file: Path | str = KEYS_FILE) -> None:
        """Revoke a key for good; a running gateway refuses it within seconds. Raises UserError when there is none."""
        from breakeven.gateway.keys import store

        store.revoke(Path(file), name)

    @staticmethod
    def list(file: Path | str = KEYS_FILE) -> tuple[KeyEntry, ...]:
        """Every key with what it may do, revoked and expired ones too; no secret is stored, so none is shown."""
        from breakeven.gateway.keys import store

        return store.listing(Path(file))


def _limits(limits: Iterable[str], usd: Iterable[str]) -> tuple[KeyLimit, ...]:
    """Limits in words, and dollars as `5/day`. Raises UserError for what is neither."""
    from breakeven.gateway.keys.entry import parse_limit

    dollars = []
    for text in usd:
        amount, slash, window = text.partition("/")
        if not slash:
            raise UserError(f"--usd {text!r} says no window; write --usd 5/day")
        dollars.append(parse_limit(f"{amount.strip()} usd/{window.strip()}"))
    return (*(parse_limit(text) for text in limits), *dollars)


def _slo(text: str) -> Slo | None:
    """What a key is promised; None for nothing. Raises UserError for terms that routing knows nothing of."""
    from breakeven.traffic.workload import parse_slo

    if not text:
        return None
    slo = parse_slo(text)
    if slo.itl_s is not None or slo.e2e_s is not None:
        raise UserError(f"--slo {text!r}: the gateway routes by ttft and tpot; leave the other terms out")
    return slo


def expiry(text: str, now_s: float | None = None) -> float | None:
    """Unix time of `30d`, `12h`, `90min` from now or a date (its first moment, UTC); None for nothing."""
    if not text:
        return None
    now_s = time.time() if now_s is None else now_s
    if (lasts_s := _lasting(text.strip())) is not None:
        end_s = now_s + lasts_s
    else:
        try:
            day = datetime.date.fromisoformat(text.strip())
        except ValueError:
            raise UserError(f"--expires {text!r}: write 30d, 12h, 90min, or a date as 2027-01-31") from None
        end_s = datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()
    if end_s <= now_s:
        raise UserError(f"--expires {text!r} is not in the future; write a later date or leave it out")
    return round(end_s, 3)


def _lasting(text: str) -> float | None:
    """Seconds in a duration, which of a key may be days; a plain number is a date, or nothing."""
    from breakeven.traffic.words import parse_duration

    if not text[-1:].isalpha():
        return None
    try:
        seconds = 24 * parse_duration(f"{text[:-1]}h") if text.endswith("d") else parse_duration(text)
    except UserError:
        return None
    return seconds if seconds <= MOST_S else None
