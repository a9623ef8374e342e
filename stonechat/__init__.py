"""Small language models on small boards: what an application imports.

    from stonechat import LanguageModel, RemoteModel

Each name is loaded when it is first used, so that `import stonechat` costs next to nothing. docs/reference/python.md
describes all of them. The packages below (`device_runtime`, `boards`, `converters`, `toolkit`) may change between
releases; these names stay.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_runtime import __version__ as __version__
    from device_runtime.bundle.folder import Bundle as Bundle
    from device_runtime.bundle.trust import TrustStore as TrustStore
    from device_runtime.client.remote import RemoteAnswer as RemoteAnswer
    from device_runtime.client.remote import RemoteModel as RemoteModel
    from device_runtime.engine.encoder.encoder_model import Classification as Classification
    from device_runtime.engine.encoder.encoder_model import EncoderModel as EncoderModel
    from device_runtime.engine.encoder.translator import Translator as Translator
    from device_runtime.engine.language_model import Completion as Completion
    from device_runtime.engine.language_model import Generation as Generation
    from device_runtime.engine.language_model import LanguageModel as LanguageModel
    from device_runtime.engine.sampler import Sampling as Sampling
    from device_runtime.engine.text.segments import Markup as Markup
    from device_runtime.errors import BackendError as BackendError
    from device_runtime.errors import BackendMissingError as BackendMissingError
    from device_runtime.errors import BundleError as BundleError
    from device_runtime.errors import ConfigurationError as ConfigurationError
    from device_runtime.errors import ContextOverflowError as ContextOverflowError
    from device_runtime.errors import DoesNotFitError as DoesNotFitError
    from device_runtime.errors import IncompleteError as IncompleteError
    from device_runtime.errors import SchemaError as SchemaError
    from device_runtime.errors import SignatureError as SignatureError
    from device_runtime.errors import StonechatError as StonechatError
    from device_runtime.errors import UnavailableError as UnavailableError
    from device_runtime.errors import UnreachableError as UnreachableError
    from device_runtime.mqtt.address import BrokerAddress as BrokerAddress
    from device_runtime.mqtt.address import Certificates as Certificates
    from device_runtime.mqtt.messages import Final as Final

_HOMES = {
    "device_runtime": ("__version__",),
    "device_runtime.bundle.folder": ("Bundle",),
    "device_runtime.bundle.trust": ("TrustStore",),
    "device_runtime.client.remote": ("RemoteAnswer", "RemoteModel"),
    "device_runtime.engine.encoder.encoder_model": ("Classification", "EncoderModel"),
    "device_runtime.engine.encoder.translator": ("Translator",),
    "device_runtime.engine.language_model": ("Completion", "Generation", "LanguageModel"),
    "device_runtime.engine.sampler": ("Sampling",),
    "device_runtime.engine.text.segments": ("Markup",),
    "device_runtime.errors": (
        "BackendError", "BackendMissingError", "BundleError", "ConfigurationError", "ContextOverflowError",
        "DoesNotFitError", "IncompleteError", "SchemaError", "SignatureError", "StonechatError", "UnavailableError",
        "UnreachableError",
    ),
    "device_runtime.mqtt.address": ("BrokerAddress", "Certificates"),
    "device_runtime.mqtt.messages": ("Final",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"stonechat has no {name!r}; it has {', '.join(__all__)}.")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
