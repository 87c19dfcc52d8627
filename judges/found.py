"""What a judge found: one outcome a case, directly and through the gateway."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = ("pass", "ok")
"""How outcomes begin that are what was wanted."""


def _alike(direct: str | None, through: str | None) -> bool:
    """Outcomes are equal; `ok, ...` is a likeness of the replay's that is remarked on."""
    return direct == through or (direct == "ok" and through is not None and through.startswith("ok, "))


@dataclass(frozen=True, slots=True)
class Found:
    """`direct` and `through`: outcome by case. `note`: what else differed, empty when nothing did; `remark`: more."""

    judge: str
    behind: str
    direct: dict[str, str]
    through: dict[str, str]
    note: str = ""
    remark: str = ""

    @property
    def different(self) -> list[str]:
        """Cases whose outcomes are not equal."""
        cases = sorted({*self.direct, *self.through})
        return [case for case in cases if not _alike(self.direct.get(case), self.through.get(case))]

    @property
    def better(self) -> list[str]:
        """Cases that the backend alone gets wrong, and the gateway in front of it gets right."""
        return [
            case
            for case in self.different
            if self.through.get(case, "").startswith(GOOD) and not self.direct.get(case, GOOD[0]).startswith(GOOD)
        ]

    @property
    def equal(self) -> bool:
        """Whether nothing got worse by the gateway; nothing judged is not equal."""
        return bool(self.direct) and self.different == self.better and not self.note

    def row(self) -> str:
        """A line of the table in docs/conformance.md."""
        good = [sum(value.startswith(GOOD) for value in side.values()) for side in (self.direct, self.through)]
        cases = len(self.direct)
        better = f", {len(self.better)} better through" if self.better else ""
        worse = len(self.different) - len(self.better)
        verdict = f"equal{better}{self.remark}" if self.equal else f"**{worse} differ**{better} {self.note}".strip()
        return f"| {self.judge} | {self.behind} | {cases} | {good[0]} | {good[1]} | {verdict} |"
