"""What a device asks of a bundle before it takes a byte of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from device_runtime.bundle.admission import check_admission
from device_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from device_runtime.bundle.trust import TrustStore
from device_runtime.errors import BundleError

__all__ = ["Admitted", "Policy"]


@dataclass(frozen=True)
class Admitted:
    """A bundle that a policy takes: its manifest as it came, and parsed."""

    raw: bytes
    signature: bytes | None
    manifest: Manifest


@dataclass(frozen=True)
class Policy:
    """The default takes everything but a downgrade and what has expired."""

    trust: TrustStore | None = None  # whose signature a bundle must have; None asks for none
    board: str | None = None  # the id of this board; None where it is not known
    fits: Callable[[Manifest], object] = lambda manifest: None  # raises a DoesNotFitError

    def judge(self, manifest: bytes, signature: bytes | None, security_counter: int) -> Admitted:
        """Decide on a bundle by its manifest, before any of its files is looked at.

        Args:
            security_counter: the highest that was confirmed here.

        Raises:
            SignatureError: nobody who is trusted has signed it, it has expired, or it is older than what runs.
            BundleError: it is damaged.
            DoesNotFitError: it is meant for other boards, or does not fit this one.
        """
        if self.trust is not None:  # before anything of it is believed
            self.trust.verify(manifest, signature)
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} has {len(manifest):,} bytes; at most {MAX_MANIFEST_BYTES:,} are read.")
        try:
            parsed = Manifest.from_json(manifest.decode())
        except UnicodeDecodeError:
            raise BundleError(f"{MANIFEST} is not UTF-8; the bundle is damaged, copy it again.") from None
        check_admission(parsed, security_counter=security_counter, board=self.board)
        self.fits(parsed)
        return Admitted(manifest, signature, parsed)
