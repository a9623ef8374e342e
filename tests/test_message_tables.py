"""The tables of message fields in docs/ are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from device_runtime.bridge.codec import Message, packed_fields
from device_runtime.bridge.messages import KINDS
from device_runtime.device.statistics import Statistics
from device_runtime.mqtt import messages, ota_messages
from device_runtime.records.typed_json import fields_of

ROOT = Path(__file__).parents[1]
PAGES = "".join(page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/**/*.md")))


def test_the_tables_are_current():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/message_tables.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_table_is_noticed(tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import message_tables
    finally:
        sys.path.pop(0)
    page = "a\n<!-- fields of device_runtime.mqtt.messages:State -->\nold\n<!-- end of fields -->\nb\n"
    new = message_tables.current(page)
    assert "old" not in new and "`boot`" in new and new.startswith("a\n") and new.endswith("b\n")
    assert message_tables.current(new) == new


def test_every_message_has_its_table():
    for kind in KINDS.values():
        if packed_fields(kind):
            assert f":{kind.__name__} -->" in PAGES
    for name in ("RequestPayload", "Final", "ErrorReply", "State", "Info", "HealthReport"):
        assert f"messages:{name} -->" in PAGES
    for name in ("Order", "Report", "ChunkRequest", "ChunkHeader"):
        assert f"ota_messages:{name} -->" in PAGES


@pytest.mark.parametrize("module", [messages, ota_messages], ids=lambda module: module.__name__)
def test_every_field_of_a_message_is_documented(module):
    shown = re.findall(rf"fields of {re.escape(module.__name__)}:(\w+) ", PAGES)
    for name in shown:
        record = getattr(module, name)
        assert is_dataclass(record) and not (isinstance(record, type) and issubclass(record, Message))
        assert all(field.doc for field in fields_of(record)), name


def test_what_a_device_says_of_its_health_is_described():
    described = {field.name for field in fields_of(messages.HealthReport)}
    assert set(Statistics().to_fields(3, {"readings": 1})) | {"links"} <= described
