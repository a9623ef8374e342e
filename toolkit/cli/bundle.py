"""`stonechat bundle`: pack, sign, verify and unpack bundles."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from toolkit.cli.key import add_passphrase
from toolkit.cli.options import add_json, require_extra, security_counter, whole_number
from toolkit.cli.output import rows, say, show

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest
    from toolkit.signing.bundles import Signed

__all__ = ["HELP", "add_arguments", "run", "signing_keys"]

HELP = "pack, sign, verify and unpack bundles"
_TRIAL_TOKENS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat bundle`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    pack = actions.add_parser("pack", help="make one file of a bundle folder", allow_abbrev=False)
    pack.add_argument("bundle", metavar="DIR", type=Path)
    pack.add_argument("-o", "--output", metavar="FILE.zip", type=Path, required=True, help="the file to write")
    pack.add_argument("--key", metavar="FILE", type=Path, action="append", default=[], help="sign with it (repeatable)")
    sign = actions.add_parser("sign", help="add a signature, or put it in place of the key's last", allow_abbrev=False)
    sign.add_argument("bundle", metavar="DIR|ZIP", type=Path)
    sign.add_argument(
        "--key", metavar="FILE", type=Path, action="append", required=True, help="a NAME.key (repeatable)"
    )
    for changing in (pack, sign):
        _add_fields(changing)
        add_passphrase(changing)
        add_json(changing)
    verify = actions.add_parser("verify", help="check it as a device would before installing it", allow_abbrev=False)
    verify.add_argument("bundle", metavar="DIR|ZIP", type=Path)
    verify.add_argument("--keys", metavar="DIR", type=Path, help="the trusted keys (default: this device's)")
    verify.add_argument("--board", metavar="ID", help="the device's board")
    verify.add_argument(
        "--security-counter", metavar="N", type=security_counter, default=0, help="what the device has confirmed"
    )
    add_json(verify)
    unpack = actions.add_parser("unpack", help="make a folder of a packed bundle", allow_abbrev=False)
    unpack.add_argument("bundle", metavar="ZIP", type=Path)
    unpack.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="must not exist")
    unpack.add_argument("--keys", metavar="DIR", type=Path, help="refuse what none of these has signed")


def _add_fields(parser: argparse.ArgumentParser) -> None:
    fields = parser.add_argument_group("what devices hold it to (written into the manifest; earlier signatures go)")
    fields.add_argument("--version", metavar="TEXT", type=_version, help="its version, such as 2 or 2027-01")
    fields.add_argument(
        "--security-counter", metavar="N", type=security_counter, help="devices do not go back to a smaller one"
    )
    fields.add_argument("--expires", metavar="DATE|DAYS", help="not to be installed from then on")
    fields.add_argument("--board", metavar="ID", action="append", help="meant for this board (repeatable)")
    fields.add_argument("--trial-prompt", metavar="TEXT", help="asked before a device keeps the bundle")
    fields.add_argument(
        "--trial-expect", metavar="TEXT", help="must be in the answer (default: what the bundle answers here)"
    )
    fields.add_argument("--trial-max-new", metavar="N", type=whole_number(1), help="tokens (default 32)")
    fields.add_argument(
        "--trial-examples", metavar="FILE", type=Path, help="of a bundle of a task: JSONL or CSV, asked in the trial"
    )
    fields.add_argument(
        "--trial-score", metavar="SHARE", type=_share, help="of their typed fields, at least so many must be right"
    )


def run(args: argparse.Namespace) -> int:
    """Do one of them."""
    return {"pack": _pack, "sign": _sign, "verify": _verify, "unpack": _unpack}[args.action](args)


def _pack(args: argparse.Namespace) -> int:
    keys = signing_keys(args)
    from device_runtime.errors import ConfigurationError
    from toolkit.signing.bundles import pack_bundle

    if args.bundle.is_file():
        raise ConfigurationError(f"{args.bundle} is a file; `pack` takes a bundle folder. `bundle sign` takes both.")
    _check_parent(args.output)
    if args.output.is_dir():
        raise ConfigurationError(
            f"{args.output} is a folder; name the file to write, such as {args.output}/bundle.zip."
        )
    signed = pack_bundle(args.bundle, args.output, _changes(args), keys)
    _report(args, args.output, signed, f"{args.output}: {args.output.stat().st_size:,} bytes, ")
    return 0


def _sign(args: argparse.Namespace) -> int:
    keys = signing_keys(args)
    from toolkit.signing.bundles import sign_bundle

    signed = sign_bundle(args.bundle, _changes(args), keys)
    _report(args, args.bundle, signed, f"{args.bundle}: ")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from boards import load_board
    from device_runtime.bundle.admission import check_admission
    from device_runtime.bundle.archive import Archive, head_of, open_any
    from device_runtime.bundle.trust import TrustStore, device_keys
    from device_runtime.update.active import resolve

    board = load_board(args.board).id if args.board else None
    trust = TrustStore.load(args.keys or device_keys(), required=True)
    bundle = open_any(resolve(args.bundle), trust)
    try:
        head, manifest = head_of(bundle), bundle.manifest
        signers = trust.signers(head.manifest, head.signature)
        if isinstance(bundle, Archive):
            for name in manifest.files:
                bundle.check(name)
    finally:
        if isinstance(bundle, Archive):
            bundle.close()
    check_admission(manifest, security_counter=args.security_counter, board=board)
    fields = asdict(manifest)
    shown = ("name", "version", "security_counter", "issued", "expires", "boards", "trial", "files")
    by = [{"name": key.name, "id": key.key_id} for key in signers]
    lines = [
        ("name", f"{manifest.name}, version {manifest.version}"),
        *(("signed by", str(key)) for key in signers),
        *_field_rows(manifest),
        *((name, f"{entry.size_bytes:,} bytes, sha256 {entry.sha256}") for name, entry in manifest.files.items()),
    ]
    return show(
        args, {"bundle": str(args.bundle), "signed_by": by, **{name: fields[name] for name in shown}}, rows(lines)
    )


def _unpack(args: argparse.Namespace) -> int:
    from device_runtime.bundle.archive import Archive
    from device_runtime.bundle.trust import TrustStore

    _check_parent(args.output)
    trust = TrustStore.load(args.keys, required=True) if args.keys else None
    with Archive.open(args.bundle, trust) as archive:
        bundle = archive.unpack(args.output)
    print(f"{bundle.path}: {bundle.manifest.name}, version {bundle.manifest.version}")
    return 0


def _share(text: str) -> float:
    """An argparse type: above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; expected a number above 0 and up to 1, such as 0.95")
    return value


def _version(text: str) -> str:
    """An argparse type: a word for people and for logs."""
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no version; expected up to 64 letters, digits and . + _ -")
    return text


def _check_parent(target: Path) -> None:
    from device_runtime.errors import ConfigurationError

    if not target.parent.is_dir():
        raise ConfigurationError(f"{target} cannot be written: there is no folder {target.parent}; make it first.")


def signing_keys(args: argparse.Namespace) -> list[Any]:
    """The private keys of --key."""
    try:
        from toolkit.signing.keys import read_passphrase, read_signing_key
    except ImportError as error:
        raise require_extra("sign", error) from None
    passphrase = read_passphrase(args.passphrase_file)
    return [read_signing_key(path, passphrase) for path in args.key]


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The manifest's fields that the flags set."""
    from boards import load_board
    from device_runtime.errors import ConfigurationError
    from toolkit.signing.bundles import demanded_score, expiry, golden_answer, manifest_of

    changes: dict[str, Any] = {}
    if args.version is not None:
        changes["version"] = args.version
    if args.security_counter is not None:
        changes["security_counter"] = args.security_counter
    if args.expires is not None:
        changes |= expiry(args.expires)
    if args.board:
        changes["boards"] = sorted({load_board(board).id for board in args.board})
    if args.trial_prompt is not None:
        manifest_of(args.bundle).require_task("generate", "classify", "translate")  # the others answer with no text
        max_new, expect = args.trial_max_new or _TRIAL_TOKENS, args.trial_expect
        if expect is None:
            if args.bundle.is_file():
                raise ConfigurationError(
                    "A packed bundle cannot be asked; give --trial-expect too, or set the prompt when you pack."
                )
            expect = golden_answer(args.bundle, args.trial_prompt, max_new)
        changes["trial"] = {"prompt": args.trial_prompt, "expect": expect, "max_new": max_new}
    if (args.trial_examples is None) != (args.trial_score is None):
        raise ConfigurationError("--trial-examples and --trial-score belong together; give both.")
    if args.trial_examples is not None:
        changes |= demanded_score(args.bundle, args.trial_examples, args.trial_score)
    if args.trial_prompt is None and (args.trial_expect is not None or args.trial_max_new is not None):
        raise ConfigurationError("--trial-expect and --trial-max-new belong to a --trial-prompt; give one.")
    return changes


def _field_rows(manifest: Manifest) -> list[tuple[str, str]]:
    rows = [
        ("security counter", str(manifest.security_counter)),
        ("expires", manifest.expires or "never"),
        ("boards", ", ".join(manifest.boards) or f"any that runs the profile {manifest.profile}"),
    ]
    if trial := manifest.trial:
        rows.append(
            ("trial", f"{trial.prompt!r} is answered with {trial.expect!r} in {counted(trial.max_new, 'token')}")
        )
    if wanted := manifest.trial_score:
        rows.append(
            ("trial score", f"{wanted.at_least:.1%} of {counted(len(wanted.examples), 'example')} have to be right")
        )
    return rows


def _report(args: argparse.Namespace, path: Path, signed: Signed, what: str) -> None:
    from dataclasses import asdict

    manifest = signed.manifest
    fields = {
        name: asdict(manifest)[name]
        for name in ("security_counter", "issued", "expires", "boards", "trial", "trial_score")
    }
    ids = {"signed_by": list(signed.signers), "dropped": list(signed.dropped)}
    first = f"{what}{manifest.name} {manifest.version}, signed by {', '.join(signed.signers) or 'nobody'}"
    show(
        args,
        {"bundle": str(path), "size_bytes": path.stat().st_size, **fields, **ids},
        [first, *rows(_field_rows(manifest), width=16)],
    )
    if signed.dropped and not args.json:
        say(f"stonechat: the manifest has changed; {', '.join(signed.dropped)} must sign again")
