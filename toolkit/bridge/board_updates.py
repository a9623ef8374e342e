"""Brings bundles onto the microcontroller at a serial port: over SMP, on the line that its requests use too.

A bundle is its model image and, where it has one for this board, its firmware. Both start together for a test; the
board checks hashes, signatures and its golden self-test, then it has to answer the bundle's golden prompt as any device
has. Only what has done so is confirmed; otherwise a restart of the board brings back what it ran.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from boards import Board, load_board
from device_runtime.bridge.link import Link
from device_runtime.bridge.messages import Hello
from device_runtime.bridge.model import SerialModel
from device_runtime.bridge.timing import Timing
from device_runtime.bundle.admission import check_board
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.trust import PublicKey
from device_runtime.errors import (
    ConfigurationError,
    DoesNotFitError,
    FlashError,
    StonechatError,
    UnreachableError,
    UpdateError,
)
from device_runtime.update.probe import Measured
from device_runtime.update.state import TrialLimits
from device_runtime.update.trial import judge
from toolkit.bridge.board_trial import measure_board
from toolkit.firmware.bundled import bundled_firmware
from toolkit.firmware.images import image_for
from toolkit.firmware.layout import layout_of
from toolkit.firmware.slots import bundled_model_image
from toolkit.flash.flasher import Report
from toolkit.flash.images import Image
from toolkit.flash.own_slots import OwnSlots
from toolkit.flash.ports import held_port

__all__ = ["BoardUpdates", "hello_of"]

log = logging.getLogger("stonechat.bridge")


class BoardUpdates:
    """The board at one port. Nobody else may have the port open while a method runs."""

    def __init__(
        self,
        port: str,
        baud: int,
        board: Board,
        *,
        keys: Mapping[str, PublicKey] | None = None,
        wait_s: float = 5.0,
        report: Report = lambda step, share: None,
    ) -> None:
        """Prepare.

        Args:
            board: its board file.
            keys: public keys by their ids; signatures of theirs come first.
            wait_s: for the board to say who it is, after it has started.
            report: gets the progress.

        Raises:
            ConfigurationError: the board has no slots to update.
        """
        layout = layout_of(board)
        if layout is None:
            raise ConfigurationError(
                f"{board.name} has one slot, which an update cannot undo; flash it over its cable with "
                f"`stonechat flash --board {board.id}`."
            )
        self.board = board
        self.moved: tuple[int, int] = (0, 0)  # bytes that the board has of what is being brought, and of all of it
        self._port, self._baud, self._wait_s = port, baud, wait_s
        self._keys, self._report = dict(keys or {}), report
        self._slots = OwnSlots(board, layout)

    @classmethod
    def find(
        cls, port: str, baud: int, board: str | None = None, *, wait_s: float = 5.0, report: Report | None = None,
        keys: Mapping[str, PublicKey] | None = None,
    ) -> BoardUpdates:  # fmt: skip
        """The board at a port, by what it says of itself.

        Args:
            board: its id or its file; None takes the id that its firmware was built for.

        Raises:
            UnreachableError: there is no board.
            ConfigurationError: its board file is not known, or it has no slots.
        """
        if board is None:
            board = hello_of(port, baud, wait_s).board
        try:
            file = load_board(board)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the board on {port} calls itself {board!r}, and there is no such board file: {error} Name one with "
                "--board."
            ) from None
        return cls(port, baud, file, keys=keys, wait_s=wait_s, report=report or (lambda step, share: None))

    def bring(self, bundle: Bundle, prove: Callable[[], object] = lambda: None) -> str:
        """Have the board run a bundle; in words, what it has confirmed.

        Raises:
            RolledBackError: it did not start or did not prove itself; the board runs what it ran before.
            DoesNotFitError: it is larger than a slot, or for other boards.
            FlashError: the board refused it: by its signature, its counter, or because it fell silent.
            UnreachableError: the board does not answer.
        """
        if bundle.manifest.profile != "micro":
            raise DoesNotFitError(
                f"{bundle.manifest.name} has the profile {bundle.manifest.profile!r}; {self.board.name} runs 'micro'. "
                f"Convert the checkpoint with --board {self.board.id}."
            )
        check_board(bundle.manifest, self.board.id)
        with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
            image = image_for(bundle, Path(folder), current=True).read_bytes()
        model = Image("the model", bundled_model_image(image, bundle, self._keys, self.board))
        data = bundled_firmware(bundle, self.board.id)
        firmware = Image("the firmware", data) if data is not None else None
        parts = self._slots.check(firmware, model)
        sizes = {part.what: len(part.image.data) for part in parts}
        before, self.moved = 0, (0, sum(sizes.values()))

        def report(step: str, share: float) -> None:
            nonlocal before
            what = step.removeprefix("upload ")
            if what in sizes:
                self.moved = (before + int(share * sizes[what]), self.moved[1])
                before += sizes[what] if share >= 1 else 0
            self._report(step, share)

        with held_port(self.board, self._port) as port:
            return self._slots.flash(parts, port, report, prove).verified

    def tried(self, bundle: Bundle, limits: TrialLimits) -> tuple[Measured, str]:
        """Bring a bundle, with its trial on the board; what it did there, and what the board has confirmed."""
        found: list[Measured] = []

        def prove() -> None:
            found.append(self._measure(bundle))
            if (fault := judge(found[0], limits, bundle)) is not None:
                raise FlashError(f"{bundle.manifest.name} {bundle.manifest.version} did not pass its trial: {fault}.")

        verified = self.bring(bundle, prove)
        return found[0] if found else self._measure(bundle), verified

    def probe(self, path: Path, limits: TrialLimits, threads: int | None) -> Measured | str:
        """As `device_runtime.update.trial.try_bundle`, on the board.

        Raises:
            UpdateError: the board is not there; the trial stays due.
        """
        del threads
        bundle = Bundle.open(path)
        log.info("bringing %s %s onto the board on %s", bundle.manifest.name, bundle.manifest.version, self._port)
        try:
            found, verified = self.tried(bundle, limits)
        except UnreachableError as error:
            raise UpdateError(str(error)) from None
        except StonechatError as error:  # whatever is wrong with it, the device goes on with what it ran
            return str(error).rstrip(".")
        log.info("%s", verified)
        return found

    def _measure(self, bundle: Bundle) -> Measured:
        model = SerialModel(Link(self._port, self._baud, Timing()), bundle).open(self._wait_s)
        try:
            return measure_board(model, bundle)
        finally:
            model.close()


def hello_of(port: str, baud: int, wait_s: float) -> Hello:
    """What the board on a port says of itself.

    Raises:
        UnreachableError: there is none.
    """
    with Link(port, baud) as link:
        return link.open(wait_s)
