"""What a judge found: one outcome a case, directly and through the gateway."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = ("pass", "ok")
"""How outcomes begin that are what was wanted."""


@dataclass(frozen=True, slots=True)
class Found:
    """`direct` and `through`: outcome by case. `note`: what else differed, empty when nothing did."""

    judge: str
    behind: str
    direct: dict[str, str]
    through: dict[str, str]
    note: str = ""

    @property
    def different(self) -> list[str]:
        """Cases whose outcomes are not equal."""
        cases = sorted({*self.direct, *self.through})
        return [case for case in cases if self.direct.get(case) != self.through.get(case)]

    @property
    def equal(self) -> bool:
        """Whether the gateway cannot be told from the backend; nothing judged is not equal."""
        return bool(self.direct) and not self.different and not self.note

    def row(self) -> str:
        """A line of the table in docs/conformance.md."""
        good = [sum(value.startswith(GOOD) for value in side.values()) for side in (self.direct, self.through)]
        cases = len(self.direct)
        verdict = "equal" if self.equal else f"**{len(self.different)} differ** {self.note}".strip()
        return f"| {self.judge} | {self.behind} | {cases} | {good[0]} | {good[1]} | {verdict} |"
