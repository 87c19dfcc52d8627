"""Tables of text for a terminal: columns come in groups, cut into as many tables as the width needs."""

from __future__ import annotations

from breakeven.report.terminal import columns

LONGEST_NAME = 24


def packed(first: list[str], groups: list[list[list[str]]], width: int) -> list[list[str]]:
    """Tables of lines, each with the column `first` and as many groups as `width` holds, whole where they fit.

    A group is a list of columns, a column a head and its cells; every column is as long as `first`.
    """
    tables: list[list[list[str]]] = []
    fitting = [part for group in groups for part in ([group] if _wide([first, *group]) <= width else _apart(group))]
    for group in fitting:
        if tables and _wide([first, *tables[-1], *group]) <= width:
            tables[-1] += group
        else:
            tables.append(list(group))
    return [columns(list(zip(first, *table, strict=True))) for table in tables]


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` with its middle left out where it would take the room of the numbers."""
    if len(name) <= longest:
        return name
    half = (longest - 2) // 2
    return f"{name[:half]}..{name[-half:]}"


def _apart(group: list[list[str]]) -> list[list[list[str]]]:
    """Each column of a group on its own, headed by what the first of them is about."""
    title = group[0][0].rpartition(" p")[0]
    heads = [f"{title} {column[0]}" if column[0].startswith("p") and title else column[0] for column in group]
    return [[[head, *column[1:]]] for head, column in zip(heads, group, strict=True)]


def _wide(table: list[list[str]]) -> int:
    return sum(max(len(cell) for cell in column) for column in table) + 2 * (len(table) - 1)
