"""What sensors send: JSON, or `ON`, `1500 ppm`, `21,5 °C`."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES, MessageError, parse
from device_runtime.records.printable import shown

__all__ = ["Parse", "read_payload"]

Parse = Literal["json", "text", "number", "auto"]

# A number as people and sensors write it, and its unit. It is searched in 200 characters at most.
_NUMBER = re.compile(
    r"\s*([+-]?)\s*(\d{1,40})?(?:([.,])(\d{1,40}))?(?:[eE]([+-]?\d{1,4}))?(?![\d.,])\s*([^\d\s+\-.,:/][^\r\n]{0,31})?\s*",
    re.ASCII,
)


def read_payload(payload: bytes, how: Parse = "json") -> Mapping[str, Any]:
    """The fields of a reading: those of a JSON object, else `value`, and `unit` where a number has one.

    Raises:
        MessageError: it cannot be read so.
    """
    payload = payload.removeprefix(codecs.BOM_UTF8).rstrip(b"\0")
    if how == "text":
        return {"value": _text(payload)}
    if how == "number":
        return _number(payload)
    try:
        fields = _json(payload)
    except MessageError as error:
        if how == "json":
            hint = "" if payload[:1] in (b"{", b"[", b'"') else " The link may say `parse: auto`, for text and numbers."
            raise MessageError(f"{error}{hint}") from None
        if payload[:1] in (b"{", b"["):  # damaged JSON is not a text that somebody meant
            raise
    else:
        if how == "json" or not isinstance(fields.get("value"), str) or payload[:1] != b'"':
            return fields
    try:
        return _number(payload)
    except MessageError:
        return {"value": _text(payload).strip('"')}


def _json(payload: bytes) -> Mapping[str, Any]:
    value = parse(payload)
    if isinstance(value, list) or value is None:
        raise MessageError("a reading must be a JSON object, or a bare number, string or boolean.")
    return value if isinstance(value, dict) else {"value": value}


def _text(payload: bytes) -> str:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"the payload has {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are read.")
    try:
        text = payload.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise MessageError(f"the payload is not UTF-8: byte {error.start} is 0x{payload[error.start]:02x}.") from None
    if not text:
        raise MessageError("the payload is empty.")
    return text


def _number(payload: bytes) -> Mapping[str, Any]:
    try:
        text = _text(payload)
    except MessageError:
        text = payload[:200].decode("latin-1")  # the degree sign of many a sensor
    text = text.strip('"').strip()
    found = _NUMBER.fullmatch(text[:200]) if len(text) <= 200 else None
    if found is None or (found[2] is None and found[4] is None):
        raise MessageError(f"{shown(text, 40)!r} is no number; expected one such as 21.5, 1500 ppm or -3 °C.")
    sign, whole, point, fraction, exponent, unit = found.groups()
    if point == "," and fraction is not None and len(fraction) == 3 and exponent is None and (whole or "0") != "0":
        raise MessageError(
            f"{shown(text, 40)!r} may be two numbers: thousands, or a fraction. Have it written with a point."
        )
    digits = f"{sign}{whole or '0'}" + (f".{fraction}" if fraction else "") + (f"e{exponent}" if exponent else "")
    value = int(digits) if fraction is None and exponent is None else float(digits)
    if isinstance(value, float) and math.isinf(value):
        raise MessageError(f"{shown(text, 40)!r} is beyond the range of a double.")
    return {"value": value} | ({"unit": unit.strip()} if unit else {})
