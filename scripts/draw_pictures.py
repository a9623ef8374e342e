#!/usr/bin/env python3
"""Draws the pictures of docs/pictures/ as SVG. A test holds that they are current.

python scripts/draw_pictures.py            write them
python scripts/draw_pictures.py --check    exit 1 if one is not current
"""

# ruff: noqa: E501  (a box is one line)

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"

INK, PAPER, FRAME, MUTED = "#1f2933", "#ffffff", "#3e6f8e", "#5f6c7b"
FILLS = {"file": "#fdf3dc", "step": "#e3eff6", "board": "#e6f4e6", "plain": "#f4f5f7"}
FONT = "font-family='Helvetica, Arial, DejaVu Sans, sans-serif'"
CODE = "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace'"


@dataclass
class Picture:
    """Boxes, arrows and texts on a white ground, which is readable on dark pages too."""

    width: int
    height: int
    title: str  # read aloud where the picture cannot be seen
    parts: list[str] = field(default_factory=list)

    def box(self, x: int, y: int, w: int, h: int, lines: Sequence[str], kind: str = "plain") -> None:
        """A box with centred lines; the first is bold, lines that begin with $ are commands."""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{w}' height='{h}' rx='8' fill='{FILLS[kind]}' stroke='{FRAME}'/>"
        )
        top = y + h / 2 - (len(lines) - 1) * 9 + 4.5
        for i, line in enumerate(lines):
            self.text(x + w // 2, round(top + 18 * i), line, bold=i == 0)

    def text(
        self, x: int, y: int, text: str, *, bold: bool = False, anchor: str = "middle", muted: bool = False
    ) -> None:
        """One line of text around x."""
        font, size = (CODE, 11) if text.startswith("$") else (FONT, 13)
        weight = " font-weight='bold'" if bold and not text.startswith("$") else ""
        fill = MUTED if muted else INK
        self.parts.append(
            f"<text x='{x}' y='{y}' {font} font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
            f"{escape(text.removeprefix('$'))}</text>"
        )

    def arrow(self, *points: tuple[int, int], label: str = "", at: tuple[int, int] | None = None) -> None:
        """A line with a head at its last point."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{FRAME}' stroke-width='1.6' marker-end='url(#head)'/>"
        )
        if label:
            (x0, y0), (x1, y1) = points[0], points[-1]
            x, y = at or ((x0 + x1) // 2, (y0 + y1) // 2 - 7)
            self.text(x, y, label, muted=True)

    def svg(self) -> str:
        """The file."""
        body = "\n".join(self.parts)
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
            f"width='{self.width}' height='{self.height}' role='img' aria-label='{escape(self.title, quote=True)}'>\n"
            f"<title>{escape(self.title)}</title>\n"
            "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
            f"<path d='M0,0 L8,4 L0,8 z' fill='{FRAME}'/></marker></defs>\n"
            f"<rect width='{self.width}' height='{self.height}' rx='10' fill='{PAPER}'/>\n{body}\n</svg>\n"
        )


def the_path() -> Picture:
    """From a checkpoint to an answer."""
    p = Picture(880, 330, "A checkpoint becomes a bundle, is checked against a board, deployed, and answers sensors")
    p.box(20, 30, 150, 70, ["Checkpoint", "GGUF file or", "Hugging Face folder"], "file")
    p.box(235, 30, 150, 70, ["Convert", "int8, calibrated,", "quality measured"], "step")
    p.box(450, 30, 150, 70, ["Bundle", "graph, tokenizer,", "manifest, signature"], "file")
    p.box(680, 30, 180, 70, ["Proof of fit", "memory, storage, speed", "of the board"], "step")
    p.arrow((170, 65), (233, 65))
    p.arrow((385, 65), (448, 65))
    p.arrow((600, 65), (678, 65))
    p.text(202, 22, "$stonechat convert", anchor="middle")
    p.text(640, 22, "$stonechat check")
    p.box(
        680,
        200,
        180,
        90,
        ["Linux board", "Raspberry Pi and others", "two slots: a bad update", "goes back by itself"],
        "board",
    )
    p.arrow((525, 100), (525, 150), (770, 150), (770, 198))
    p.text(650, 143, "$stonechat deploy", anchor="middle")
    p.box(390, 200, 190, 90, ["MQTT broker", "requests, readings,", "answers, health,", "updates"], "plain")
    p.box(205, 150, 130, 50, ["Sensors", "JSON readings"], "plain")
    p.box(205, 220, 130, 50, ["You", "$stonechat ask"], "plain")
    p.box(20, 200, 130, 90, ["Answers", "advice for people,", "JSON that fits", "a schema"], "file")
    p.arrow((335, 175), (365, 175), (365, 225), (388, 225))
    p.arrow((335, 250), (388, 250))
    p.arrow((580, 235), (678, 235), label="asks", at=(629, 228))
    p.arrow((678, 262), (582, 262), label="answers", at=(629, 280))
    p.arrow((390, 280), (152, 280))
    p.text(440, 320, "Readings stay on the site: nothing on this picture needs a cloud.", muted=True)
    return p


def packages() -> Picture:
    """Which package may import which."""
    p = Picture(880, 260, "toolkit imports converters, boards and device_runtime; a board needs the last two only")
    p.box(
        20,
        30,
        190,
        90,
        ["toolkit", "what a person types:", "commands, SSH, flashing,", "roll-outs, broker files"],
        "step",
    )
    p.box(245, 30, 190, 90, ["converters", "a checkpoint in,", "a bundle out,", "on a desk machine"], "step")
    p.box(470, 30, 160, 90, ["boards", "one file per board,", "the fit calculation"], "board")
    p.box(
        665,
        30,
        195,
        90,
        ["device_runtime", "engine, bundles, updates,", "MQTT service, client,", "bridge, C engine"],
        "board",
    )
    for x0, x1 in ((210, 243), (435, 468), (630, 663)):
        p.arrow((x0, 75), (x1, 75))
    p.arrow((115, 120), (115, 140), (760, 140), (760, 122))
    p.text(290, 158, "each may import what is to its right", muted=True)
    p.box(665, 180, 195, 50, ["stonechat", "$from stonechat import …"], "file")
    p.arrow((730, 180), (730, 122))
    p.box(470, 180, 160, 50, ["installed on a board", "and used there"], "plain")
    p.arrow((550, 180), (550, 122))
    p.arrow((630, 205), (648, 205), (648, 110), (663, 110))
    return p


def reading() -> Picture:
    """From a reading to its answer."""
    p = Picture(
        880,
        300,
        "A reading passes the topic filter, the guard and the template, waits, is answered, and is kept until confirmed",
    )
    p.box(20, 30, 130, 70, ["Sensor", "publishes JSON"], "plain")
    p.box(195, 30, 150, 70, ["Link: guard", "when: temp_c > 32", "most stop here"], "step")
    p.box(390, 30, 150, 70, ["Link: prompt", "template with the", "last readings"], "step")
    p.box(585, 30, 120, 70, ["Queue", "newest first", "under load"], "step")
    p.box(750, 30, 110, 70, ["Model", "one answer", "at a time"], "board")
    for x0, x1 in ((150, 193), (345, 388), (540, 583), (705, 748)):
        p.arrow((x0, 65), (x1, 65))
    p.text(450, 125, "network thread: never waits for the model", muted=True)
    p.text(740, 150, "worker thread", muted=True)
    p.box(585, 170, 120, 70, ["Outbox", "on the disk until", "confirmed"], "file")
    p.box(390, 170, 150, 70, ["Broker", "QoS 1"], "plain")
    p.box(195, 170, 150, 70, ["Topic `to`", "a dashboard, a person,", "an actuator"], "plain")
    p.arrow((805, 100), (805, 205), (707, 205))
    p.arrow((585, 195), (542, 195))
    p.arrow((540, 222), (583, 222), label="confirmed", at=(562, 260))
    p.arrow((390, 205), (347, 205))
    p.text(440, 288, "A power cut between two steps loses no answer that was given.", muted=True)
    return p


def wiring() -> Picture:
    """How a board with stonechat's firmware is connected, in its three ways."""
    p = Picture(
        880,
        400,
        "Three ways: USB cable, a 3.3 V serial adapter with TX and RX crossed, or a network cable to the broker",
    )
    p.text(20, 30, "1  USB: the debugger or the chip's own plug is a serial port", bold=True, anchor="start")
    p.box(20, 45, 200, 60, ["Board", "USB plug"], "board")
    p.box(330, 45, 220, 60, ["Gateway, a Pi", "$/dev/ttyACM0"], "plain")
    p.arrow((220, 75), (328, 75), label="USB cable", at=(274, 66))
    p.arrow((550, 75), (648, 75), label="MQTT", at=(600, 66))
    p.box(650, 45, 200, 60, ["Broker"], "plain")
    p.text(
        20,
        150,
        "2  a serial adapter of 3.3 V: TX and RX are crossed, and the grounds are joined",
        bold=True,
        anchor="start",
    )
    p.box(20, 165, 200, 100, ["Board", "TX of its UART", "RX of its UART", "GND"], "board")
    p.box(330, 165, 220, 100, ["Adapter, 3.3 V", "RX", "TX", "GND"], "plain")
    p.arrow((220, 212), (328, 212))
    p.arrow((328, 230), (222, 230))
    p.arrow((220, 249), (328, 249))
    p.arrow((550, 215), (648, 215), label="USB", at=(600, 206))
    p.box(650, 185, 200, 60, ["Gateway, a Pi", "$/dev/ttyUSB0"], "plain")
    p.text(20, 310, "3  without a host: firmware that was built with --mqtt", bold=True, anchor="start")
    p.box(20, 325, 200, 60, ["Board", "network card (LAN9118)"], "board")
    p.arrow((220, 355), (648, 355), label="Ethernet, MQTT 3.1.1 without TLS: a network for boards alone", at=(434, 346))
    p.box(650, 325, 200, 60, ["Broker"], "plain")
    return p


def resets() -> Picture:
    """What a start of a board does, and which button leads where."""
    p = Picture(
        880,
        330,
        "After a reset the boot loader chooses a slot, the model proves itself, and an update is kept only once it is confirmed",
    )
    p.box(20, 30, 150, 70, ["Reset", "power, button,", "watchdog, command"], "plain")
    p.box(230, 30, 180, 70, ["Boot loader", "a trial once, else what", "was confirmed"], "step")
    p.box(470, 30, 180, 70, ["Firmware", "opens the model:", "hash, self-test"], "board")
    p.box(710, 30, 150, 70, ["Ready", "frames, SMP,", "console, MQTT"], "board")
    p.arrow((170, 65), (228, 65))
    p.arrow((410, 65), (468, 65), label="hash, key", at=(439, 56))
    p.arrow((650, 65), (708, 65))
    p.box(230, 150, 180, 70, ["Both slots bad", "says so on the console,", "takes an image"], "plain")
    p.arrow((320, 100), (320, 148))
    p.text(320, 245, "$stonechat flash firmware.image", muted=True)
    p.box(470, 150, 180, 70, ["Model refused", "the other slot's model,", "or none: send one"], "plain")
    p.arrow((560, 100), (560, 148))
    p.text(560, 245, "$stonechat flash --model BUNDLE", muted=True)
    p.box(710, 150, 150, 70, ["Confirmed?", "yes: it stays", "no: back at reset"], "file")
    p.arrow((785, 100), (785, 148), label="on trial", at=(830, 128))
    p.text(
        20,
        280,
        "A chip's own boot loader (ROM) is reached by its button while RESET is let go: BOOT of an ESP32, BOOTSEL of an RP2,",
        anchor="start",
        muted=True,
    )
    p.text(
        20,
        300,
        "BOOT0 at 3.3 V of an STM32. Nothing of stonechat's can be in its way, and it writes whatever the cable brings.",
        anchor="start",
        muted=True,
    )
    return p


PICTURES: Mapping[str, Callable[[], Picture]] = {
    "path.svg": the_path, "packages.svg": packages, "reading.svg": reading, "wiring.svg": wiring, "resets.svg": resets
}  # fmt: skip


def main() -> int:
    """Draw the pictures, or say which are not current."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/pictures/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a picture is not current")
    args = parser.parse_args()
    stale = []
    for name, draw in PICTURES.items():
        file, svg = FOLDER / name, draw().svg()
        if not file.exists() or file.read_text(encoding="utf-8") != svg:
            stale.append(name)
            if not args.check:
                file.write_text(svg, encoding="utf-8")
    print(f"{'not current' if args.check else 'drawn'}: {', '.join(stale) or 'none'}")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
