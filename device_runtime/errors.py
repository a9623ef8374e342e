"""Every error that stonechat raises on purpose, in one tree.

    StonechatError                      exit 1
    ├── ConfigurationError (ValueError)       2  flags, fleet files, board files
    │   ├── ContextOverflowError              2  more tokens than the context holds
    │   └── SchemaError                       2  a JSON schema that no answer can be held to
    ├── UnreachableError (ConnectionError)    3  a retry may help
    │   └── UnavailableError                  3  a microcontroller is gone from its serial port
    ├── SignatureError                        4  a bundle nobody trusted has signed
    ├── DoesNotFitError                       5  the model is too large for the board
    ├── RolledBackError                       6  an update failed, the old slot runs again
    ├── CheckpointError (ValueError)          1  a checkpoint that cannot be read
    │   └── ArchitectureError                 1  a family that no converter knows
    ├── BundleError (ValueError)              1  a bundle that is damaged or too new
    ├── ImageError (ValueError)               1  firmware, or a packed bundle to flash, that is damaged
    ├── FlashError                            1  a board that refused an image, or holds something else than it
    ├── GraphError (ValueError)               1  a graph that TFLite Micro could not run, or a damaged one
    └── BackendError (RuntimeError)           1  a graph that this runtime cannot run
        └── BackendMissingError               2  the runtime that is needed is not installed

Each message names what was found, what was expected (with its unit) and the next step.
`exit_code` is what the command line returns; `code` is the word that goes over MQTT and into `--json`.
"""

from __future__ import annotations

__all__ = [
    "ArchitectureError",
    "BackendError",
    "BackendMissingError",
    "BundleError",
    "CheckpointError",
    "ConfigurationError",
    "ContextOverflowError",
    "DoesNotFitError",
    "FlashError",
    "GraphError",
    "ImageError",
    "RolledBackError",
    "SchemaError",
    "SignatureError",
    "StonechatError",
    "UnavailableError",
    "UnreachableError",
    "UpdateError",
]


class StonechatError(Exception):
    """Root of the tree. Catch this to catch everything that stonechat reports."""

    exit_code = 1
    code = "failed"


class ConfigurationError(StonechatError, ValueError):
    """A flag, a fleet file or a board file asks for something that cannot be."""

    exit_code = 2
    code = "configuration"


class ContextOverflowError(ConfigurationError):
    """A prompt, or a prompt and its answer, is longer than the model's context."""

    code = "context_overflow"


class SchemaError(ConfigurationError):
    """A JSON schema is not one, or no answer can be held to it."""

    code = "schema"


class UnreachableError(StonechatError, ConnectionError):
    """A broker, a device or a server did not answer. Trying again may help."""

    exit_code = 3
    code = "unreachable"


class UnavailableError(UnreachableError):
    """A device is in its fleet and cannot answer now: its microcontroller is gone from the serial port."""

    code = "unavailable"


class SignatureError(StonechatError):
    """A bundle is unsigned, or signed by a key that this device does not trust."""

    exit_code = 4
    code = "signature"


class DoesNotFitError(StonechatError):
    """A model needs more memory or storage than the board has."""

    exit_code = 5
    code = "does_not_fit"


class RolledBackError(StonechatError):
    """An update did not pass its trial; the device runs what it ran before."""

    exit_code = 6
    code = "rolled_back"


class UpdateError(StonechatError):
    """An update cannot begin or go on: another one is under way, the disk is full, the state is damaged."""

    code = "update"


class CheckpointError(StonechatError, ValueError):
    """A checkpoint is truncated, lacks a tensor, or has one of the wrong shape."""

    code = "checkpoint"


class ArchitectureError(CheckpointError):
    """A checkpoint belongs to a family that no file in converters/architectures describes."""

    code = "architecture"


class BundleError(StonechatError, ValueError):
    """A bundle is incomplete, altered, or of a format this version does not read."""

    code = "bundle"


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


class BackendMissingError(BackendError):
    """The runtime that would serve this graph is not installed."""

    exit_code = 2
    code = "backend_missing"
