"""Signatures of bundles, in both of their forms, and the fields that are set before signing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from device_runtime.bundle.archive import Archive, head_of, open_any, pack
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, MANIFEST, Manifest, TrialScore, utc_time
from device_runtime.bundle.trust import SIGNATURE, Signature, parse_signatures
from device_runtime.errors import ConfigurationError, SignatureError
from device_runtime.records.printable import counted
from device_runtime.update import durable
from device_runtime.update.active import open_bundle, resolve
from toolkit.firmware.container import model_container
from toolkit.signing.keys import SigningKey

__all__ = ["Signed", "demanded_score", "edited", "expiry", "golden_answer", "manifest_of", "pack_bundle", "sign_bundle"]


_MOST_EXAMPLES = 500  # of a trial: they are in the manifest


@dataclass(frozen=True)
class Signed:
    """What a bundle has become."""

    manifest: Manifest
    signers: tuple[str, ...]  # ids of keys, ascending
    dropped: tuple[str, ...]  # ids of keys whose signatures no longer held


def pack_bundle(folder: Path, target: Path, changes: Mapping[str, Any], keys: Sequence[SigningKey]) -> Signed:
    """Pack a bundle folder, which stays as it is; the changes and the signatures are in the zip.

    Raises:
        ConfigurationError: there is no bundle in `folder`.
        BundleError: it is damaged.
    """
    bundle = open_bundle(folder, verify=True)
    manifest, signatures, signed = _sign(bundle, changes, keys)
    pack(bundle, target, manifest=manifest, signature=signatures)
    return signed


def sign_bundle(path: Path, changes: Mapping[str, Any], keys: Sequence[SigningKey]) -> Signed:
    """Add signatures to a bundle, folder or zip, in its place; a key that has signed before signs again.

    Raises:
        ConfigurationError: there is no bundle at `path`.
        BundleError: it is damaged: nobody should vouch for it.
    """
    bundle = open_any(resolve(path))
    try:
        manifest, signatures, signed = _sign(bundle, changes, keys)
        if isinstance(bundle, Archive):
            pack(bundle, path, manifest=manifest, signature=signatures)
        else:
            durable.replace_file(bundle.path / MANIFEST, manifest)
            durable.replace_file(bundle.path / SIGNATURE, signatures or b"")
    finally:
        if isinstance(bundle, Archive):
            bundle.close()
    return signed


def edited(manifest: bytes, changes: Mapping[str, Any]) -> bytes:
    """manifest.json with some fields changed; fields that this version does not know stay."""
    fields = json.loads(manifest)
    if all(fields.get(name) == value for name, value in changes.items()):
        return manifest
    text = json.dumps({**fields, **changes}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    Manifest.from_json(text)
    return text.encode()


def expiry(text: str, now: datetime | None = None) -> dict[str, Any]:
    """The fields for --expires: a number of days from now, a date, or a date-time in UTC.

    Raises:
        ConfigurationError: it is none of them, or past.
    """
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    try:
        if text.isascii() and text.isdigit():
            time = now + timedelta(days=int(text))
        elif "T" in text or " " in text:
            time = utc_time(text)
        else:
            time = utc_time(f"{text}T00:00:00Z")
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"--expires is {text!r}; expected a number of days, a date such as 2027-01-31, or a date-time in UTC such "
            "as 2027-01-31T12:00:00Z."
        ) from None
    if time <= now:
        raise ConfigurationError(f"--expires {text} is past already ({_iso(now)} now); no device would install it.")
    return {"expires": _iso(time), "issued": _iso(now)}


def manifest_of(path: Path) -> Manifest:
    """Of a bundle's folder, or of a packed bundle."""
    bundle = open_any(resolve(path))
    if isinstance(bundle, Archive):
        bundle.close()
    return bundle.manifest


def golden_answer(folder: Path, prompt: str, max_new: int) -> str:
    """What the bundle answers to the golden prompt on this machine, greedy.

    Raises:
        ConfigurationError: it answers nothing.
    """
    from device_runtime.engine.opening import open_model

    with open_model(folder) as model:
        plain = model.manifest.chat_template is None
        text = "".join(model.generate(prompt if plain else [{"role": "user", "content": prompt}], max_new=max_new))
    text = text.rstrip("\ufffd").strip()  # a character that the token limit has cut
    if not text:
        raise ConfigurationError(f"The bundle answers nothing to {prompt!r}; choose another --trial-prompt.")
    return text


def demanded_score(path: Path, examples: Path, at_least: float) -> dict[str, Any]:
    """The field for --trial-examples; a bundle that is a folder has to reach the score on this machine.

    Raises:
        ConfigurationError: the bundle was trained for no task, the examples have faults, or it does not reach it.
    """
    from device_runtime.tasks.examples import read_examples
    from device_runtime.tasks.purpose import Purpose
    from device_runtime.update.probe import task_score

    manifest = manifest_of(path)
    purpose = Purpose.of_manifest(manifest)
    if purpose is None:
        raise ConfigurationError(f"{path} was trained for no task, so no score can be asked of it; use --trial-prompt.")
    found = read_examples(examples, purpose.inputs, purpose.answer)
    if len(found) > _MOST_EXAMPLES:
        raise ConfigurationError(
            f"{examples} has {len(found)} examples; a trial takes at most {_MOST_EXAMPLES}, since they are in the "
            "manifest and every device answers them. Choose some."
        )
    rows = tuple({"input": dict(example.input), "answer": dict(example.answer or {})} for example in found)
    wanted = TrialScore(at_least, rows)
    if path.is_dir() and (score := task_score(path, wanted)) < at_least:
        raise ConfigurationError(
            f"The bundle gets {score:.1%} of {counted(len(rows), 'example')} right here, less than --trial-score "
            f"{at_least:g}; every device would go back to what it has."
        )
    return {"trial_score": {"at_least": at_least, "examples": list(rows)}}


def _sign(
    bundle: Archive | Bundle, changes: Mapping[str, Any], keys: Sequence[SigningKey]
) -> tuple[bytes, bytes | None, Signed]:
    head = head_of(bundle)
    manifest = edited(head.manifest, changes)
    before = _known(head.signature)
    kept = before if manifest == head.manifest else {}
    image = _image_digest(bundle, Manifest.from_json(manifest.decode())) if keys else None
    signatures = {**kept, **{key.public.key_id: key.sign(manifest, image) for key in keys}}
    signed = Signed(
        Manifest.from_json(manifest.decode()), tuple(sorted(signatures)), tuple(sorted(before.keys() - signatures))
    )
    if not signatures:
        return manifest, None, signed
    entries = [signature.to_fields() for _, signature in sorted(signatures.items())]
    return manifest, (json.dumps({"schema": 1, "signatures": entries}) + "\n").encode(), signed


def _image_digest(bundle: Archive | Bundle, manifest: Manifest) -> bytes | None:
    """What boards check of the model image before they keep it; None: the bundle has none."""
    if IMAGE not in manifest.files:
        return None
    data = b"".join(bundle.chunks(IMAGE)) if isinstance(bundle, Archive) else (bundle.path / IMAGE).read_bytes()
    return model_container(data, manifest).digest


def _known(signature: bytes | None) -> dict[str, Signature]:
    try:
        return {} if signature is None else {s.key_id: s for s in parse_signatures(signature)}
    except SignatureError:  # damaged; signing again is what mends it
        return {}


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
