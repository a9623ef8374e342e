"""SMP answers with keys that smpclient does not know.

A server may say more than this version of smpclient has a field for (RFC 8949 maps have no fixed keys, and Zephyr adds
some with each release); smpclient refuses such an answer as a whole. Here what it does not know is left out before it
looks.
"""

from __future__ import annotations

from typing import Any

import cbor2
from smp import image_management as images
from smp import os_management as system
from smp.header import Header
from smpclient.transport.serial import SMPSerialTransport

__all__ = ["TolerantTransport", "known_part"]

_OF_THE_FRAME = {"header", "version", "sequence", "smp_data"}
_ERROR = {"rc", "rsn", "err"}
_ANSWERS: dict[tuple[int, int], Any] = {
    (int(kind._GROUP_ID), int(kind._COMMAND_ID)): kind
    for kind in (
        images.ImageStatesReadResponse,
        images.ImageUploadWriteResponse,
        system.ResetWriteResponse,
        system.MCUMgrParametersReadResponse,
    )
}


class TolerantTransport(SMPSerialTransport):
    """A serial line whose answers have only keys that smpclient knows; `before` goes out at each connection."""

    before = b""

    async def connect(self, address: str, timeout_s: float) -> None:
        """Open the port."""
        await super().connect(address, timeout_s)
        if self.before:
            self._conn.write(self.before)

    async def receive(self) -> bytes:
        """The next frame."""
        return known_part(await super().receive())


def known_part(frame: bytes) -> bytes:
    """A frame without what smpclient does not know; as it is where there is nothing of that."""
    try:
        header = Header.loads(frame[: Header.SIZE])
        body = cbor2.loads(frame[Header.SIZE :])
    except Exception:  # damaged on the line; smpclient says so itself
        return frame
    kind = _ANSWERS.get((int(header.group_id), int(header.command_id)))
    if kind is None or not isinstance(body, dict):
        return frame
    known = _only(body, set(kind.model_fields) - _OF_THE_FRAME | _ERROR)
    if isinstance(known.get("images"), list):
        fields = set(images.ImageState.model_fields)
        known["images"] = [_only(slot, fields) if isinstance(slot, dict) else slot for slot in known["images"]]
    if isinstance(known.get("err"), dict):
        known["err"] = _only(known["err"], {"group", "rc"})
    return frame if known == body else frame[: Header.SIZE] + cbor2.dumps(known)


def _only(values: dict[Any, Any], names: set[str]) -> dict[Any, Any]:
    return {name: value for name, value in values.items() if name in names}
