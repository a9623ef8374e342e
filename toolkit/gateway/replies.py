"""Answers as OpenAI's clients read them. Follows the OpenAI API reference, "The chat completion object"."""

from __future__ import annotations

import base64
import json
import secrets
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from device_runtime.errors import (
    ConfigurationError,
    ContextOverflowError,
    DiskFullError,
    RefusedError,
    SchemaError,
    StonechatError,
    UnfamiliarError,
    UnreachableError,
)
from device_runtime.mqtt.messages import Final
from device_runtime.records.typed_json import write
from toolkit.gateway.source import Card

__all__ = ["DONE", "Shape", "embedding_list", "error_body", "event", "model_list", "status_of"]

DONE = b"data: [DONE]\n\n"
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}


@dataclass
class Shape:
    """The form of one answer: whole, or as chunks."""

    model: str
    raw: bool = False  # of /v1/completions
    usage_in_stream: bool = False
    ignored: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, final: Final, device: str | None) -> dict[str, Any]:
        """The answer in one object."""
        finish = _FINISH[final.finish]
        if self.raw:
            choice = {"index": 0, "text": final.text, "logprobs": None, "finish_reason": finish}
        else:
            message = {"role": "assistant", "content": final.text, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {
            **self._head(chunk=False), "choices": [choice], "usage": _usage(final),
            "stonechat": self._ours(final, device),
        }  # fmt: skip

    def first(self) -> bytes:
        """Whose turn it is; empty where that is not said."""
        return b"" if self.raw else self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> bytes:
        """A piece of the text."""
        return self._chunk({"content": text}, None, text)

    def end(self, final: Final, device: str | None) -> bytes:
        """Why it ended; then the usage, where it was asked for; then the mark of the end."""
        ours = self._ours(final, device)
        end = self._chunk({}, _FINISH[final.finish], stonechat=ours)
        if self.usage_in_stream:
            end += event({**self._head(chunk=True), "choices": [], "usage": _usage(final)})
        return end + DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None, text: str = "", **more: Any) -> bytes:
        choice = {"index": 0, "text": text} if self.raw else {"index": 0, "delta": delta}
        usage = {"usage": None} if self.usage_in_stream else {}
        choices = [{**choice, "logprobs": None, "finish_reason": finish}]
        return event({**self._head(chunk=True), "choices": choices, **usage, **more})

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if self.raw else "chat.completion.chunk" if chunk else "chat.completion"
        prefix = "cmpl" if self.raw else "chatcmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _ours(self, final: Final, device: str | None) -> dict[str, Any]:
        """What OpenAI's form has no place for."""
        fields = {
            "device": device,
            "confidence": dict(final.confidence) if final.confidence else None,
            "probabilities": {n: dict(shares) for n, shares in (final.probabilities or {}).items()} or None,
            "unfamiliar": final.unfamiliar,
            "reason": final.reason,
            "route": None if final.route is None else write(final.route),
            "energy": final.energy,
            "deadline": True if final.finish == "deadline" else None,
            "ttft_ms": round(final.ttft_ms, 1),
            "tokens_per_s": round(final.tps, 2),
            "ignored": list(self.ignored) or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _usage(final: Final) -> dict[str, Any]:
    usage = final.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_list(cards: Sequence[Card]) -> dict[str, Any]:
    """`GET /v1/models`."""
    return {"object": "list", "data": [model(card) for card in cards]}


def model(card: Card) -> dict[str, Any]:
    """One of them."""
    return {
        "id": card.id, "object": "model", "created": card.created, "owned_by": card.owner,
        "stonechat": {"task": card.task},
    }  # fmt: skip


def embedding_list(model: str, finals: Sequence[Final], as_base64: bool, ignored: Sequence[str]) -> dict[str, Any]:
    """`POST /v1/embeddings`."""
    tokens = sum(final.usage.prompt_tokens for final in finals)
    ours = {"stonechat": {"ignored": list(ignored)}} if ignored else {}
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": number, "embedding": _vector(final.embedding or (), as_base64)}
            for number, final in enumerate(finals)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **ours,
    }


def _vector(values: Sequence[float], as_base64: bool) -> list[float] | str:
    """Numbers, or their little-endian float32 bytes in base64."""
    if not as_base64:
        return [round(float(value), 6) for value in values]
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")


def status_of(error: BaseException) -> int:
    """The status of an HTTP answer that says why there is none."""
    match error:
        case RefusedError():
            return error.status
        case UnfamiliarError():
            return 422
        case UnreachableError():
            return 429 if error.retry_after_ms is not None else 503
        case DiskFullError():
            return 507
        case ConfigurationError():
            return 400
    return 500


def error_body(error: BaseException) -> dict[str, Any]:
    """The same as JSON: what openai's clients show is `message`."""
    status = status_of(error)
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    code: str | None = error.code if isinstance(error, StonechatError) else "internal_error"
    if isinstance(error, RefusedError):
        code = error.reason
    elif isinstance(error, ContextOverflowError):
        code = "context_length_exceeded"
    elif isinstance(error, UnreachableError) and status == 429:
        code = "busy"
    param = error.param if isinstance(error, RefusedError) else None
    if isinstance(error, SchemaError):
        param = "response_format"
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    text = str(error) if isinstance(error, StonechatError) else "the model failed; the gateway's log says more."
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}
