"""The systemd unit of a board."""

from __future__ import annotations

from boards.board import Board
from toolkit.device.layout import USER, Layout

__all__ = ["memory_max", "unit_text"]

WATCHDOG_S = 120  # a step of a large model on a small board, with room: 32 tokens of a prompt, or one of an answer
PROGRAM_KIB = 192 * 1024  # Python, the runtime and the tokenizer, beside the model
_OF_RAM = 0.9

_UNIT = """\
# Written by `stonechat device init`; local changes belong to `systemctl edit stonechat`.
[Unit]
Description=stonechat, a language model online as {device}
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target
# The broker may be away for days: never give up.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
User={user}
Group={user}
Environment={cache}
WorkingDirectory={root}
UMask=0027
# The first start after an update hashes the model and arranges its weights.
TimeoutStartSec=600
TimeoutStopSec=30
WatchdogSec={watchdog_s}
WatchdogSignal=SIGABRT
Restart=always
RestartSec=10
MemoryMax={memory_max}
MemorySwapMax=0
TasksMax=64
# A bundle on trial that runs out of memory fails; what serves goes on.
OOMPolicy=continue

# It reads its own folder, writes two places in it, and talks to the broker; nothing else.
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
PrivateIPC=yes
RemoveIPC=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
DevicePolicy=closed
KeyringMode=private
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def memory_max(board: Board | None) -> str:
    """The limit of the service: the model's share of this board and the program's, or three quarters of the RAM."""
    if board is None:
        return "75%"
    kib = min(board.memory.model_budget_kib + PROGRAM_KIB, int(board.memory.ram_kib * _OF_RAM))
    return f"{kib // 1024}M"


def unit_text(layout: Layout, device: str, board: Board | None) -> str:
    """The unit file."""
    return _UNIT.format(
        device=device,
        command=" ".join(_word(word) for word in layout.serve(device)),
        user=USER,
        cache=_word(f"STONECHAT_CACHE={layout.state}/cache"),
        root=_path(layout.root),
        watchdog_s=WATCHDOG_S,
        memory_max=memory_max(board),
        writable=" ".join(_word(path) for path in (layout.state, f"{layout.root}/models")),
    )


def _path(text: str) -> str:
    """A value that is one path: only specifiers have a meaning there."""
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a line, as systemd.syntax(7) wants it. `Layout` admits no quotes and no dollar signs."""
    return f'"{_path(text)}"' if " " in text else _path(text)
