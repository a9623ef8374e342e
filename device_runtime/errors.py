"""Every error that stonechat raises on purpose, in one tree. (A test holds that there is no other.)

    StonechatError                        exit 1
    ├── ConfigurationError (ValueError)        2  flags, fleet files, board files
    │   ├── ContextOverflowError               2  more tokens than the context has positions
    │   ├── SchemaError                        2  a JSON schema that no answer can fit
    │   ├── CannotRedactError                  2  a prompt from which a field cannot be withheld
    │   ├── MissingExtraError                  2  a package of one of stonechat's extras is not installed
    │   └── RefusedError                       2  an HTTP request that a server of ours does not take
    ├── UnreachableError (ConnectionError)     3  a retry may help
    │   ├── UnavailableError                   3  a microcontroller is gone from its serial port
    │   ├── OffSiteError                       3  an address outside of the site, which nobody has allowed
    │   └── NoAnswerError                      3  a boot loader did not answer in time
    ├── SignatureError                         4  a bundle is not signed by a trusted key
    ├── DoesNotFitError                        5  the model is too large for the board
    ├── RolledBackError                        6  an update failed, the previous bundle runs again
    ├── UpdateError                            1  an update cannot start or continue
    ├── DiskFullError                          1  less room on a disk than the work needs
    ├── RemoteError                            1  a command failed on a board, over SSH
    ├── CheckpointError (ValueError)           1  a checkpoint that cannot be read
    │   └── ArchitectureError                  1  a model family that no converter supports
    ├── BundleError (ValueError)               1  a bundle that is damaged or too new
    │   └── OutdatedBundleError                1  a bundle that only an earlier stonechat runs
    ├── ImageError (ValueError)                1  firmware, or a packed bundle to flash, that is damaged
    ├── FlashError                             1  a board refused an image, or holds something else than it
    ├── GraphError (ValueError)                1  a graph that TFLite Micro could not run, or a damaged one
    ├── BackendError (RuntimeError)            1  a graph that this runtime cannot run
    │   ├── DamagedWeightsError                1  packed weights that the disk has changed
    │   └── BackendMissingError                2  the runtime that is needed is not installed
    ├── MessageError (ValueError)              1  a payload or a serial message that breaks its protocol
    │   └── FrameError                         1  bytes on a serial line that are no frame
    ├── LinkError                              1  a reading that a link cannot use
    │   └── UndefinedNameError                 1  … because it lacks a field
    ├── EmulatedFaultError                     1  an emulated board cannot serve a request
    ├── IncompleteError                        1  an answer ended before it fitted its schema
    ├── UnfamiliarError                        1  a question that no model is for
    └── PartFailedError                        1  a process of the demo ended by itself

The text of each names what was found, what was expected (with its unit) and the next step. What a program may need is
in attributes, in `fields`. `exit_code` is what the command line returns; `code` is the word in MQTT replies and
in `--json`.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArchitectureError",
    "BackendError",
    "BackendMissingError",
    "BundleError",
    "CannotRedactError",
    "CheckpointError",
    "ConfigurationError",
    "ContextOverflowError",
    "DamagedWeightsError",
    "DiskFullError",
    "DoesNotFitError",
    "EmulatedFaultError",
    "FlashError",
    "FrameError",
    "GraphError",
    "ImageError",
    "IncompleteError",
    "LinkError",
    "MessageError",
    "MissingExtraError",
    "NoAnswerError",
    "OffSiteError",
    "OutdatedBundleError",
    "PartFailedError",
    "RefusedError",
    "RemoteError",
    "RolledBackError",
    "SchemaError",
    "SignatureError",
    "StonechatError",
    "UnavailableError",
    "UndefinedNameError",
    "UnfamiliarError",
    "UnreachableError",
    "UpdateError",
]


class StonechatError(Exception):
    """Root of the tree. Catch this to catch everything that stonechat reports."""

    exit_code = 1
    code = "failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    @property
    def fields(self) -> dict[str, Any]:
        """The attributes of this error that are known, by name."""
        return {name: value for name, value in vars(self).items() if value is not None and not name.startswith("_")}


class ConfigurationError(StonechatError, ValueError):
    """A flag, a fleet file or a board file asks for something that cannot be."""

    exit_code = 2
    code = "configuration"


class ContextOverflowError(ConfigurationError):
    """A prompt, or a prompt and its answer, is longer than the model's context."""

    code = "context_overflow"

    def __init__(self, message: str = "", *, tokens: int | None = None, context: int | None = None) -> None:
        super().__init__(message)
        self.tokens = tokens  # of the prompt, or of the prompt and its answer
        self.context = context  # positions that the model has


class SchemaError(ConfigurationError):
    """A JSON schema is not valid, or no answer can fit it."""

    code = "schema"


class CannotRedactError(ConfigurationError):
    """A text holds fields that are to be withheld, and they cannot be found in it."""

    code = "cannot_redact"


class MissingExtraError(ConfigurationError):
    """A package that this command needs is not installed; one of stonechat's extras brings it."""

    code = "missing_extra"

    def __init__(self, message: str = "", *, package: str | None = None, extra: str | None = None) -> None:
        super().__init__(message)
        self.package, self.extra = package, extra

    @classmethod
    def of(cls, what: str, package: str | None, extra: str) -> MissingExtraError:
        """`what`, such as "This command", needs a package: how to install the extra that brings it."""
        return cls(
            f"{what} needs the package {package!r}, which is not installed; run `pip install '.[{extra}]'` in a "
            "checkout (stonechat is not on the Python package index yet).",
            package=package,
            extra=extra,
        )


class RefusedError(ConfigurationError):
    """A request over HTTP that is not taken as it is."""

    code = "refused"

    def __init__(
        self, message: str = "", *, status: int = 400, reason: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status  # of the HTTP answer
        self.reason = reason  # a word for programs
        self.param = param  # which field of the request


class UnreachableError(StonechatError, ConnectionError):
    """A broker, a device or a server did not answer. Trying again may help."""

    exit_code = 3
    code = "unreachable"

    def __init__(self, message: str = "", *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms  # as the device suggests


class UnavailableError(UnreachableError):
    """A device is in its fleet and cannot answer now: its microcontroller is gone from the serial port."""

    code = "unavailable"


class OffSiteError(UnreachableError):
    """An address is outside of the site, and nobody has allowed that."""

    code = "off_site"


class NoAnswerError(UnreachableError):
    """A microcontroller's boot loader did not answer in time."""

    code = "no_answer"


class SignatureError(StonechatError):
    """A bundle is not signed, or not by a key that this device trusts."""

    exit_code = 4
    code = "signature"


class DoesNotFitError(StonechatError):
    """A model needs more memory or storage than the board has."""

    exit_code = 5
    code = "does_not_fit"

    def __init__(
        self, message: str = "", *, needed_bytes: int | None = None, available_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


class RolledBackError(StonechatError):
    """An update did not pass its trial; the device runs what it ran before."""

    exit_code = 6
    code = "rolled_back"

    def __init__(self, message: str = "", *, version: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.version = version  # of the bundle that failed
        self.reason = reason


class UpdateError(StonechatError):
    """An update cannot start or continue: another one is in progress, the disk is full, the state is damaged."""

    code = "update"


class DiskFullError(StonechatError):
    """A disk has less room than the work needs, which is known before it, or shows while it writes; nothing is left."""

    code = "disk_full"

    def __init__(
        self,
        message: str = "",
        *,
        path: str | None = None,
        needed_bytes: int | None = None,
        available_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.path, self.needed_bytes, self.available_bytes = path, needed_bytes, available_bytes


class RemoteError(StonechatError):
    """A command failed on a board, over SSH."""

    code = "remote"


class CheckpointError(StonechatError, ValueError):
    """A checkpoint is truncated, lacks a tensor, or has one of the wrong shape."""

    code = "checkpoint"


class ArchitectureError(CheckpointError):
    """A checkpoint belongs to a family that no file in converters/architectures describes."""

    code = "architecture"


class BundleError(StonechatError, ValueError):
    """A bundle is incomplete, altered, or of a format this version does not read."""

    code = "bundle"


class OutdatedBundleError(BundleError):
    """A bundle of before an upgrade, whose graph this version does not run."""


class ImageError(StonechatError, ValueError):
    """A file that is to be flashed is damaged, or no image at all."""

    code = "image"


class FlashError(StonechatError):
    """A board refused an image, fell silent while it was written, or holds something else afterwards."""

    code = "flash"


class GraphError(StonechatError, ValueError):
    """A graph breaks TFLite Micro's rules, or is not a TFLite graph at all."""

    code = "graph"


class BackendError(StonechatError, RuntimeError):
    """A runtime refused a graph, or does not serve its profile."""

    code = "backend"


class DamagedWeightsError(BackendError):
    """The packed weights of an open graph are not those of the graph; opened again, it packs them again."""

    code = "damaged_weights"


class BackendMissingError(BackendError):
    """The runtime that would serve this graph is not installed."""

    exit_code = 2
    code = "backend_missing"


class MessageError(StonechatError, ValueError):
    """A payload or a serial message that breaks its protocol."""

    code = "invalid_request"


class FrameError(MessageError):
    """Bytes on a serial line that are no frame."""

    code = "frame"


class LinkError(StonechatError):
    """A link received a reading that its expression or its templates cannot use."""

    code = "link"


class UndefinedNameError(LinkError):
    """A reading lacks a field that the link uses."""


class EmulatedFaultError(StonechatError):
    """Why an emulated board cannot serve a request."""

    code = "fault"

    def __init__(self, fault: int, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault  # device_runtime.bridge.messages.FaultCode
        self.reason = reason


class UnfamiliarError(StonechatError):
    """No model is for a question, and nobody to whom it could be passed on has answered."""

    code = "unfamiliar"


class IncompleteError(StonechatError):
    """An answer met its limit before it fitted its schema, or a strict reader of JSON would refuse it."""

    code = "incomplete"


class PartFailedError(StonechatError):
    """A process that the demo started ended by itself."""

    code = "demo_part_failed"
