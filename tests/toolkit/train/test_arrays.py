"""The state of a training on the disk: read back as it was kept, and what is damaged or of another form is known."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

import jax.numpy as jnp

from device_runtime.errors import ConfigurationError
from toolkit.train.arrays import kept_state, read_state, write_state
from toolkit.train.tune.steps import Earlier, earlier
from toolkit.train.weights import SETTINGS, TRAINED, finish, work_folder

LEAVES = [jnp.arange(6.0).reshape(2, 3), jnp.arange(4, dtype=jnp.int32), jnp.asarray(2.5)]
BLANK = [jnp.zeros_like(leaf) for leaf in LEAVES]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Whose tuning has left its state."""
    work_folder(tmp_path / "bundle").mkdir()
    write_state(work_folder(tmp_path / "bundle") / TRAINED, LEAVES, step=7, settled=2)
    return tmp_path / "bundle"


def state_of(bundle: Path) -> Path:
    return work_folder(bundle) / TRAINED


def same(found: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_state_is_read_as_it_was_kept(bundle: Path) -> None:
    found = kept_state(state_of(bundle), BLANK, "step", "settled")
    assert found is not None and found[0] == [7, 2]
    same(found[1], LEAVES)


def test_a_part_of_it_is_read_from_its_place_and_in_the_types_that_are_expected(bundle: Path) -> None:
    same(Earlier(bundle, {}, "").weights(BLANK[1:], 1), LEAVES[1:])
    same(Earlier(bundle, {}, "").weights([jnp.zeros(4)], 1), [jnp.arange(4.0)])


@pytest.mark.parametrize(
    ("like", "place"),
    [
        ([BLANK[0].T, *BLANK[1:]], 0),
        ([*BLANK, jnp.zeros(3)], 0),
        ([BLANK[2]], 3),  # of no shape, as what is not there
        ([BLANK[0]], 1),
    ],
)
def test_what_is_of_another_form_is_not_taken(bundle: Path, like: list[Any], place: int) -> None:
    assert read_state(state_of(bundle), like, (), place) is None
    if not place:
        assert kept_state(state_of(bundle), like, "step") is None
    with pytest.raises(ConfigurationError, match="whose training had other weights; give its --layers 2, and"):
        Earlier(bundle, {"layers": 2}, "").weights(like, place)


def test_without_its_numbers_it_is_of_another_form(bundle: Path) -> None:
    assert kept_state(state_of(bundle), BLANK, "step", "epoch") is None


def changed(content: bytes, how: str) -> bytes:
    """As copies that broke off and disks leave it."""
    place, entry = content.index(b"l000.npy"), content.rindex(b"l000.npy") - 46  # its bytes, and in the zip's index
    if how == "deflated":
        held = io.BytesIO()
        np.savez_compressed(held, l000=np.zeros((200, 300)))
        content = held.getvalue()
        return content[:200] + bytes(byte ^ 255 for byte in content[200:300]) + content[300:]
    return {
        "empty": b"",
        "begun": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "text": b"no state",
        "a value": content[: place + 150] + bytes([content[place + 150] ^ 1]) + content[place + 151 :],
        "a later zip": content[: entry + 6] + b"\x63" + content[entry + 7 :],
        "locked": content[: entry + 8] + b"\x01" + content[entry + 9 :],
    }[how]


@pytest.mark.parametrize(
    "how", ["missing", "empty", "begun", "zeros", "text", "a value", "a later zip", "locked", "deflated"]
)
def test_what_cannot_be_read_is_begun_again_and_named_where_another_goes_on_from_it(bundle: Path, how: str) -> None:
    path = state_of(bundle)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(changed(path.read_bytes(), how))
    assert kept_state(path, BLANK, "step") is None
    words = rf"{re.escape(str(path))} cannot be read \(.*\); expected the state of a training. Train .*bundle again"
    with pytest.raises(ConfigurationError, match=words):
        Earlier(bundle, {}, "").weights(BLANK, 0)
    (work_folder(bundle) / SETTINGS).write_text('{"checkpoint": "c"}')
    finish(work_folder(bundle))
    with pytest.raises(ConfigurationError, match="has no steps of a tuning" if how == "missing" else words):
        earlier(bundle, bundle.with_name("new"), "c")  # before any work
