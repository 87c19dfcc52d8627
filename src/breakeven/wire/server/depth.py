"""How deep a JSON body nests, without decoding it: a decoder meets only what is shallow enough."""

from __future__ import annotations

from itertools import accumulate

_PART_BYTES = 1 << 16
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_STEPS = bytes(1 if c in b"[{" else 255 for c in range(256))
"""An opening bracket as +1, a closing one as -1, once read as signed bytes."""


def json_too_deep(body: bytes, depth: int) -> bool:
    """Whether arrays and objects in `body` nest more than `depth` deep. Brackets within strings do not count.

    Never False for JSON that nests deeper; what is not JSON gets some answer. Most bodies have fewer brackets than
    `depth` in all and are not looked at further. The rest is cut at its quotes part by part, so that memory stays
    bounded whatever is sent, by functions that run in C.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    level, in_string, at, end = 0, False, 0, len(body)
    while at < end:
        upto = min(at + _PART_BYTES, end)
        while upto < end and body[upto - 1] == 0x5C:  # a backslash belongs to what follows
            upto += 1
        part = body[at:upto]
        at = upto
        if b"\\" in part:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        brackets = b"".join(pieces[in_string::2]).translate(None, _NOT_BRACKETS)
        in_string ^= len(pieces) % 2 == 0
        if brackets:
            levels = list(accumulate(_signed(brackets), initial=level))
            if max(levels) > depth:
                return True
            level = levels[-1]
    return False


def _signed(brackets: bytes) -> memoryview:
    return memoryview(brackets.translate(_STEPS)).cast("b")
