"""What clients ask in OpenAI's words, in ours. Follows the OpenAI API reference, "Create chat completion".

Clients send more than a small model can use. What changes nothing but taste is left out and named in the answer
(`stonechat.ignored`); what would make the answer another than the one that was asked for is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_runtime.errors import RefusedError, StonechatError
from device_runtime.mqtt.messages import Request
from device_runtime.mqtt.strict_json import MessageError, parse

__all__ = ["MAX_BODY", "Asked", "Embed", "chat", "completion", "embeddings", "parse_body"]

MAX_BODY = 1 << 20  # bytes
_MAX_LEVELS = 64  # of lists and objects: a schema lies deep in a body
MAX_INPUTS = 2048  # texts of one request for vectors, as OpenAI has it
_ANY_OBJECT = {"type": "object", "additionalProperties": True}
_READ = {
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "top_k", "seed", "stop", "response_format", "n", "best_of", "echo", "suffix", "logprobs", "top_logprobs",
    "tools", "tool_choice", "functions", "function_call", "modalities", "to", "truncate",
}  # fmt: skip
_READ_OF_EMBEDDINGS = {"model", "input", "encoding_format", "dimensions", "truncate", "prompt_name"}
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, "", [], {}, "auto", "default", "none")  # asks for nothing


@dataclass(frozen=True)
class Asked:
    """A request for a text."""

    model: str
    request: Request
    stream: bool = False
    usage_in_stream: bool = False
    raw: bool = False  # continue the text as it is
    ignored: tuple[str, ...] = ()  # parameters that were left out
    limit_name: str = "max_tokens"  # what the client calls the limit of the answer's tokens

    def in_their_words(self, error: StonechatError) -> StonechatError:
        """An error of the model or the device, with the client's name for what it has sent."""
        error.args = tuple(text.replace("max_new", self.limit_name) for text in map(str, error.args))
        return error


@dataclass(frozen=True)
class Embed:
    """A request for vectors."""

    model: str
    inputs: tuple[str, ...]
    base64: bool = False
    dimensions: int | None = None
    truncate: bool = False  # cut off the end of a text that is too long
    prompt_name: str | None = None  # what the texts are for
    ignored: tuple[str, ...] = ()


def parse_body(body: bytes) -> dict[str, Any]:
    """A JSON object, as RFC 8259 has it: without NaN, and no name twice.

    Raises:
        RefusedError: it is none.
    """
    try:
        value = parse(body, what="body", most_bytes=MAX_BODY, most_levels=_MAX_LEVELS)
    except MessageError as error:
        raise RefusedError(str(error), reason="invalid_json") from None
    if not isinstance(value, dict):
        raise RefusedError(f"the body is {_kind(value)}; expected a JSON object.", reason="invalid_json")
    return value


def chat(body: Mapping[str, Any]) -> Asked:
    """`POST /v1/chat/completions`.

    Raises:
        RefusedError: names the parameter that cannot be served.
    """
    ignored = _ignored(body)
    _refuse_tools(body)
    if body.get("logprobs"):
        raise _no("logprobs", "the probability of each token is not given; an answer that is held to a schema has "
                  "`stonechat.confidence` for each of its fields")  # fmt: skip
    modalities = body.get("modalities") or ["text"]
    if not isinstance(modalities, list) or any(wanted != "text" for wanted in modalities):
        raise _no("modalities", "answers are texts")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError(f"messages is {_kind(messages)}; expected a list of {{role, content}}.", param="messages")
    fields = {
        "messages": [_message(message, number) for number, message in enumerate(messages)],
        "schema": _schema(body.get("response_format")),
    }
    return _asked(body, fields, ignored)


def completion(body: Mapping[str, Any]) -> Asked:
    """`POST /v1/completions`: the text goes on as it is, without a chat template.

    Raises:
        RefusedError: names the parameter that cannot be served.
    """
    ignored = _ignored(body)
    if body.get("logprobs") is not None:
        raise _no("logprobs", "the probability of each token is not given")
    for name in ("echo", "suffix"):
        if body.get(name):
            raise _no(name, "the answer is the continuation alone")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise RefusedError(f"prompt is {_kind(prompt)}; expected one text that is not empty.", param="prompt")
    return _asked(body, {"prompt": prompt, "schema": _schema(body.get("response_format"))}, ignored, raw=True)


def embeddings(body: Mapping[str, Any]) -> Embed:
    """`POST /v1/embeddings`.

    Raises:
        RefusedError: names the parameter that cannot be served.
    """
    given = body.get("input")
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not inputs or not all(isinstance(text, str) and text for text in inputs):
        tokens = isinstance(inputs, list) and inputs and isinstance(inputs[0], int | list)
        hint = "; token ids belong to another tokenizer, send texts (LangChain: check_embedding_ctx_length=False)"
        raise RefusedError(
            f"input is {_kind(given)}; expected a text or a list of texts, none of them empty{hint if tokens else ''}.",
            param="input",
        )
    if len(inputs) > MAX_INPUTS:
        raise RefusedError(f"input has {len(inputs)} texts; send at most {MAX_INPUTS} at once.", param="input")
    how = body.get("encoding_format") or "float"
    if how not in ("float", "base64"):
        raise RefusedError(f"encoding_format is {how!r}; expected float or base64.", param="encoding_format")
    dimensions = _whole(body, "dimensions")
    purpose = body.get("prompt_name")
    if purpose is not None and not isinstance(purpose, str):
        raise RefusedError(f"prompt_name is {_kind(purpose)}; expected a text.", param="prompt_name")
    ignored = tuple(name for name in body if name not in _READ_OF_EMBEDDINGS)
    return Embed(
        _model(body), tuple(inputs), how == "base64", dimensions, _truth(body, "truncate"), purpose or None, ignored
    )


def _asked(body: Mapping[str, Any], fields: dict[str, Any], ignored: tuple[str, ...], raw: bool = False) -> Asked:
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise _no(name, "one answer is made; ask again for another")
    stop = body.get("stop")
    seed = _whole(body, "seed")
    limit = _whole(body, "max_completion_tokens")
    top_p = body.get("top_p")
    limit_name = "max_tokens" if limit is None else "max_completion_tokens"
    fields |= {
        "max_new": _whole(body, "max_tokens") if limit is None else limit,
        "temperature": body.get("temperature"),
        "top_p": 1e-6 if top_p == 0 and not isinstance(top_p, bool) else top_p,
        "top_k": _whole(body, "top_k"),
        "seed": None if seed is None else seed % 2**63,
        "stop": [stop] if isinstance(stop, str) else stop,
        "stream": True,
        "to": body.get("to"),
        "truncate": _truth(body, "truncate"),
    }
    stream = _truth(body, "stream")
    try:
        request = Request.from_value({name: value for name, value in fields.items() if value not in (None, [])})
    except MessageError as error:
        text = str(error).replace("max_new", limit_name).replace("schema", "response_format")
        raise RefusedError(text, param=_named_by(text, body)) from None
    options = body.get("stream_options") or {}
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    return Asked(_model(body), request, stream, usage, raw, ignored, limit_name)


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError(
            f"model is {_kind(model)}; expected a name: GET /v1/models lists what there is.", param="model"
        )
    return model


def _message(message: Any, number: int) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise RefusedError(f"{where} is {_kind(message)}; expected {{role, content}}.", param="messages")
    role = message.get("role")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise RefusedError(
            f"{where}.role is {role!r}; expected system, developer, user or assistant (no tools are called here).",
            param="messages",
        )
    return {"role": role, "content": _text(message.get("content"), where)}


def _text(content: Any, where: str) -> str:
    """A text, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RefusedError(f"{where}.content is {_kind(content)}; expected a text.", param="messages")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text") or not isinstance(text, str):
            raise RefusedError(f"{where}.content has a part of type {kind!r}; only texts are read.", param="messages")
        texts.append(text)
    return "\n".join(texts)


def _schema(wanted: Any) -> Mapping[str, Any] | None:
    """`response_format`."""
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        # llama.cpp's server takes a schema here, and Hugging Face's client sends it so, as `value`
        schema = wanted.get("schema") or wanted.get("value") or _ANY_OBJECT
    elif kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
    else:
        raise RefusedError(
            f"response_format is {kind or _kind(wanted)!r}; expected text, json_object or json_schema.",
            param="response_format",
        )
    if not isinstance(schema, Mapping):
        raise RefusedError(
            "response_format has no schema; expected {type: json_schema, json_schema: {name, schema}}.",
            param="response_format",
        )
    return schema


def _refuse_tools(body: Mapping[str, Any]) -> None:
    """Tools that a model may call are left out, since it may do without; tools that it must call are refused."""
    for name, of in (("tool_choice", "tools"), ("function_call", "functions")):
        choice = body.get(name)
        if choice not in (None, "auto", "none"):
            raise _no(name, f"no {of} are called here; for data, ask for a response_format of json_schema")


def _ignored(body: Mapping[str, Any]) -> tuple[str, ...]:
    left_out = [name for name, value in body.items() if name not in _READ and value not in _NEUTRAL]
    tools = [name for name in ("tools", "functions") if body.get(name)]
    return tuple(sorted(left_out + tools))


def _no(name: str, why: str) -> RefusedError:
    return RefusedError(f"{name} is not supported: {why}.", reason="unsupported_parameter", param=name)


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JavaScript's and Node-RED's numbers
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise RefusedError(f"{name} is {_kind(value)}; expected a whole number.", param=name)
    return value


def _truth(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RefusedError(f"{name} is {_kind(value)}; expected true or false.", param=name)
    return bool(value)


def _named_by(text: str, body: Mapping[str, Any]) -> str | None:
    """The parameter that a fault is about: it begins with it, as in `stop[0] is an empty string.`"""
    name = re.split(r"[ .\[]", text, maxsplit=1)[0]
    return name if name in body else None


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__) + (" that is empty" if value in ("", [], {}) else "")
