"""Files of others, parsed within bounds: a few bytes of YAML or JSON can unfold to more than a machine holds.

Whatever such a file says, parsing it takes little time and memory and ends in a value or in a ValueError whose text is
one short reason; who calls adds the file's name and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MOST_WHOLE = 10**12
"""The largest number that a width, a count or a context may be: far beyond any model, and harmless to multiply."""
MOST_PARAMS = 10**15
"""Of a model, all together; trillions have been published."""
MOST_LAYERS = 512
"""The deepest published model has 126."""
MOST_TYPED_BYTES = 64_000
"""Of a file that describes one thing and is typed by hand."""
_MOST_VALUES = 1_000_000
"""Values of a JSON text; the index of a model with 384 experts in 60 layers, in three tensors each, lists 200,000."""
_MOST_UNFOLDED = 100_000
"""Values of a YAML text once its aliases are followed."""
_DEEPEST = 50
"""Brackets in brackets of a YAML text; what people type nests five deep."""
_SHOWN = 60
_PIECE_BYTES = 1 << 20


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The contents of a file that is not larger than it can rightly be. Raises OSError, or ValueError when it is."""
    data = bytearray()
    with path.open("rb") as file:
        # Asked for at once, all that it may be would be allocated first.
        while len(data) <= most_bytes and (piece := file.read(min(_PIECE_BYTES, most_bytes + 1 - len(data)))):
            data += piece
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes / 1e6:g} MB")
    return bytes(data)


def bounded_json(data: bytes) -> object:
    """The value of a JSON text. Raises ValueError for text that is none, is nested too deeply or holds too much."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(_digits(error)) from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which the usual loader keeps the last, and knows no dates."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = str(key_node.value)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {shown(key)} is written twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_KNOWN = ("null", "bool", "int", "float", "str", "seq")
_Loader.yaml_constructors = {
    **{f"tag:yaml.org,2002:{tag}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{tag}"] for tag in _KNOWN},
    "tag:yaml.org,2002:map": _mapping,
    None: yaml.SafeLoader.yaml_constructors[None],
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def bounded_yaml(data: bytes) -> object:
    """The value of a YAML text; dates stay text.

    Raises ValueError for text that is none, writes a key twice, is nested too deeply, or whose aliases unfold to too
    much or to themselves.
    """
    depth = 0
    # Known before parsing, which takes a second to find that out.
    for bracket in re.finditer(rb"[][{}]", data):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
    loader = None
    try:
        loader = _Loader(data.decode("utf-8"))
        root = loader.get_single_node()
        if root is None:
            return None
        if _unfolded(root, {}) > _MOST_UNFOLDED:
            raise ValueError(f"its aliases unfold to more than {_MOST_UNFOLDED:,} values; write less of them")
        return loader.construct_document(root)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(_cut(" ".join(str(error).split()), 300)) from None
    except (LookupError, OverflowError):
        raise ValueError("a value is not what its tag says") from None
    except ValueError as error:
        raise ValueError(_digits(error)) from None
    finally:
        if loader is not None:
            loader.dispose()


def _digits(error: ValueError) -> str:
    """What is wrong; Python's own words for a number of over 4300 digits name a setting that would not help."""
    return "a number has too many digits" if "digits" in str(error) else str(error)


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` holds, each as often as an alias names it. Each node is counted once."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        pairs = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_unfolded(each, known) for each in pairs)
    if known[id(node)] < 0:
        raise ValueError("an alias in it stands for something that holds the alias")
    return known[id(node)]


def shown(value: object) -> str:
    """`value` as an error shows it, cut to 60 letters."""
    try:
        return _cut(repr(value), _SHOWN)
    except (ValueError, RecursionError):  # a number of over 4300 digits, which Python does not write
        return "a very large number" if isinstance(value, int) else f"a {type(value).__name__}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
