"""What goes over an MQTT connection besides payloads: wills, subscriptions, messages, and what a broker offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Capabilities", "Incoming", "Subscription", "Will"]


@dataclass(frozen=True)
class Will:
    """What the broker publishes when this client vanishes."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True)
class Capabilities:
    """What a broker offers, as its CONNACK lists it (MQTT 5.0, section 3.2.2.3). The defaults are those of MQTT 5."""

    max_qos: int = 2
    retain: bool = True
    wildcards: bool = True
    subscription_ids: bool = True
    shared: bool = True
    max_packet_bytes: int | None = None

    @classmethod
    def of(cls, properties: Any) -> Capabilities:
        """Read the properties of a CONNACK."""

        def flag(name: str) -> bool:
            return bool(getattr(properties, name, 1))

        return cls(
            max_qos=getattr(properties, "MaximumQoS", 2),
            retain=flag("RetainAvailable"),
            wildcards=flag("WildcardSubscriptionAvailable"),
            subscription_ids=flag("SubscriptionIdentifierAvailable"),
            shared=flag("SharedSubscriptionAvailable"),
            max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
        )

    def refuses(self, subscription: Subscription) -> str:
        """Why a broker would end the connection over a subscription; empty if it takes it."""
        if subscription.filter.startswith("$share/") and not self.shared:
            return "the broker offers no shared subscriptions (pools need them)"
        if not self.wildcards and any(sign in subscription.filter for sign in "+#"):
            return "the broker offers no wildcards"
        return ""


@dataclass(frozen=True)
class Subscription:
    """A filter, and how the broker should treat retained messages that match it."""

    filter: str
    qos: int = 1
    replay_retained: bool = True  # send what is stored when the subscription starts (MQTT 5)
    tell_retained: bool = False  # keep the retain flag on messages that come later (MQTT 5)
    id: int | None = None  # the broker names it on each message that matched (MQTT 5, section 3.8.2.1.2)


@dataclass(frozen=True)
class Incoming:
    """A message from the broker, with the MQTT 5 properties that stonechat uses."""

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str | None = None
    correlation_data: bytes | None = None
    expiry_s: int | None = None  # what is left of its Message Expiry Interval
    subscription_ids: tuple[int, ...] = ()
