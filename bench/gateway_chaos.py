"""The chaos suite at full length: many requests through a gateway whose backends and clients misbehave.

    python bench/gateway_chaos.py [--requests 20000] [--at-once 48] [--workers 2] [--seed 1]

Prints what came of them and every problem found; exits with 1 when there is one. What is checked, and how, stands in
`tests/gateway_chaos_fixtures.py`; `tests/test_gateway_chaos.py` runs the same with fewer requests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from gateway_chaos_fixtures import SHARES, Chaos, run_chaos

MIB = 2**20


def figures(chaos: Chaos) -> list[tuple[str, str]]:
    """What came of it, a line each."""
    endings = chaos.endings
    errors = Counter(one.status for one in chaos.told if one.ending == "error")
    attempts = Counter(len(record.attempts) for record in chaos.records)
    good = ("ok", "slow", "closes_after", "no_length", "no_usage", "no_done", "no_finish", "interim", "trailers")
    good += ("odd_headers", "second_answer")
    asked = chaos.behaviours.total()
    bad = asked - sum(chaos.behaviours[name] for name in good)
    early, late = chaos.rss_bytes[len(chaos.rss_bytes) // 3], chaos.rss_bytes[-1]
    return [
        ("requests", f"{len(chaos.told)} in {chaos.seconds:.0f} s"),
        ("questions to backends", f"{asked}, of which {bad} ({bad / asked:.0%}) went wrong, {len(SHARES)} behaviours"),
        ("whole answers", str(endings["whole"])),
        ("errors told", f"{endings['error']}: {', '.join(f'{n} x {code}' for code, n in sorted(errors.items()))}"),
        ("answers cut, visibly", str(endings["cut"])),
        ("clients that left", str(endings["left"])),
        ("lost, mixed, wrong bytes", f"{endings['lost']}, {endings['mixed']}, {endings['wrong']}"),
        ("bytes nobody asked for", str(chaos.strays)),
        ("records in the log", str(len(chaos.records))),
        ("attempts of a request", ", ".join(f"{n} x {k}" for k, n in sorted(attempts.items()))),
        ("hedges", str(sum(one["hedged"] for one in chaos.state["backends"]))),
        ("in flight, queued at the end", str(sum(one["in_flight"] + one["queued"] for one in chaos.state["backends"]))),
        ("memory of workers, at a third / at the end", " MiB, ".join(
            f"{a / MIB:.1f} / {b / MIB:.1f}" for a, b in zip(early, late, strict=True)) + " MiB"),
        ("open files of workers at the end", ", ".join(map(str, chaos.descriptors))),
    ]  # fmt: skip


def main() -> None:
    """Run it and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        chaos = run_chaos(
            Path(directory) / "run", given.requests, at_once=given.at_once, seed=given.seed, workers=given.workers
        )
    for name, value in figures(chaos):
        print(f"| {name} | {value} |")
    problems = chaos.problems()
    for one in problems[:50]:
        print(one[:500])
    print(f"{len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
