"""What can be wrong with YAML before its fields are looked at. By anchors, a few lines can be billions of values."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from device_runtime.errors import ConfigurationError

__all__ = ["check_size", "nodes_of", "quote_hint"]

MAX_VALUES = 250_000  # of a file, those of anchors counted wherever they are used


def check_size(root: yaml.Node, file: str) -> None:
    """Refuse what anchors make too large, or endless, before it is walked. Each node is looked at once.

    Raises:
        ConfigurationError: it is; says where.
    """
    sizes: dict[int, int] = {}  # id of a node -> values in it, those of anchors counted wherever they are used
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, complete = stack.pop()
        if id(node) in sizes:
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        children = [child for pair in pairs for child in pair]
        children += node.value if isinstance(node, yaml.SequenceNode) else ()
        if complete:
            open_nodes.discard(id(node))
            size = 1 + sum(sizes[id(child)] for child in children)
            if size > MAX_VALUES:
                mark = node.start_mark
                raise ConfigurationError(
                    f"{file}:{mark.line + 1}:{mark.column + 1}: its anchors stand for more than {MAX_VALUES:,} values; "
                    "write fewer."
                )
            sizes[id(node)] = size
            continue
        open_nodes.add(id(node))
        stack.append((node, True))
        for child in children:
            if id(child) in open_nodes:
                mark = child.start_mark
                raise ConfigurationError(
                    f"{file}:{mark.line + 1}:{mark.column + 1}: an anchor leads back to itself; write the value out."
                )
            if id(child) not in sizes:
                stack.append((child, False))


def nodes_of(root: yaml.Node) -> Iterator[yaml.Node]:
    """Each node below `root`, itself included, once: an anchor may lead to one several times."""
    nodes, seen = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            nodes += node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]


def quote_hint(line: str) -> str:
    """What to do about a line that is no YAML, where it is one of those that everybody writes once."""
    found = re.match(r"[\s{-]*[\w-]+: +(.*)", line)
    value = found[1] if found else ""
    if line.lstrip(" ").startswith("\t"):
        return "; indent with spaces"
    if "{{" in value or "${" in value:
        return "; put quotes around the whole of a value with braces in it"
    if value.startswith(("'", '"')):
        return "; a value that begins with a quote ends with it: put other quotes around the whole of it"
    return "; put quotes around a value that has ': ' in it" if ": " in value else ""
