"""The fleet file as it lies on a board: the operator's, with the board's own paths in it.

Only the paths of bundles, certificates, passwords and keys are replaced, where they stand: comments, order and ids
stay.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import yaml

from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from toolkit.device.layout import KEYS

__all__ = ["fleet_for_board"]


def fleet_for_board(path: Path) -> str:
    """The text of a fleet file, with `bundle: models/NAME`, `certs` and `password_file: certs`, and `keys: keys`.

    Raises:
        ConfigurationError: the file has faults, or shares one path between models through an anchor.
    """
    models = fleet.load(path).models
    text = path.read_text(encoding="utf-8")
    places = []
    for keys, node in _scalars(yaml.compose(text, Loader=yaml.SafeLoader)):
        if len(keys) == 3 and keys[0] == "models" and keys[2] == "bundle":
            places.append((node, f"models/{keys[1]}"))
        elif keys in (("broker", "certs"), ("broker", "password_file")):
            places.append((node, "certs"))
        elif keys == ("keys",):
            places.append((node, KEYS))
    for node, value in sorted(places, key=lambda place: -place[0].start_mark.index):
        text = text[: node.start_mark.index] + json.dumps(value) + text[node.end_mark.index :]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(text, encoding="utf-8")
        expected = {name: f"models/{name}" for name in models}
        try:
            found = {name: model.bundle for name, model in fleet.load(copy).models.items()}
        except ConfigurationError:
            found = {}
    if found != expected:
        raise ConfigurationError(
            f"{path}: each model needs a path of its own on the board; write `bundle:` out for each, without anchors."
        )
    return text


def _scalars(node: yaml.Node | None, keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], yaml.ScalarNode]]:
    """Every scalar inside of mappings, with the keys that lead to it; anchors and merges may show one twice."""
    if isinstance(node, yaml.ScalarNode):
        return [(keys, node)]
    if not isinstance(node, yaml.MappingNode):
        return []
    return [found for key, value in node.value for found in _scalars(value, (*keys, str(key.value)))]
