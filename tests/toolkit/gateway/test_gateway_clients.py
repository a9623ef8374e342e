"""The clients that people use, against real bundles: OpenAI's own, and Hugging Face's, which shares no code with it."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.language_model import LanguageModel
from toolkit.gateway.bundles import Bundles

openai = pytest.importorskip("openai", reason="the openai client is not installed")
hub = pytest.importorskip("huggingface_hub")

EXAMPLES = Path(__file__).parents[3] / "examples"
SCHEMA = {
    "type": "object",
    "properties": {"hot": {"type": "boolean"}, "what": {"enum": ["pump", "valve"]}},
    "required": ["hot", "what"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Is it hot?"}]


@pytest.fixture(scope="module")
def url(serving: Callable[..., str], pi_bundle: Path, bundles: Callable[[str], Bundle]) -> str:
    return serving(Bundles({"chat": pi_bundle, "vectors": bundles("bert-embed").path}, threads=1))


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def here(pi_bundle: Path) -> LanguageModel:
    return LanguageModel.open(pi_bundle, threads=1)


class TestOpenAI:
    def test_models_are_listed_and_found_by_name(self, client):
        assert {m.id: m.stonechat["task"] for m in client.models.list()} == {"chat": "generate", "vectors": "embed"}
        assert client.models.retrieve("chat").owned_by == "stonechat"
        with pytest.raises(openai.NotFoundError, match="there are chat, vectors"):
            client.models.retrieve("gpt-4o")

    def test_a_chat_gets_what_the_engine_says(self, client, here):
        said = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=8)
        generation = here.generate(MESSAGES, max_new=8)
        assert said.choices[0].message.content == "".join(generation)
        result = generation.result
        assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (
            result.prompt_tokens,
            result.completion_tokens,
        )
        assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
        assert said.choices[0].finish_reason == result.finish
        assert said.object == "chat.completion" and said.model == "chat"

    def test_a_stream_has_the_same_text_in_pieces_and_its_usage_at_the_end(self, client):
        whole = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=8)
        chunks = list(
            client.chat.completions.create(
                model="chat", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert len({chunk.id for chunk in chunks}) == 1

    def test_a_stream_without_the_option_has_no_usage(self, client):
        chunks = list(client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=4, stream=True))
        assert all(chunk.usage is None and chunk.choices for chunk in chunks)

    def test_an_answer_fits_its_schema_and_says_how_sure_it_is(self, client):
        wanted = {"type": "json_schema", "json_schema": {"name": "reading", "strict": True, "schema": SCHEMA}}
        said = client.chat.completions.create(model="chat", messages=MESSAGES, response_format=wanted)
        answer = json.loads(said.choices[0].message.content)
        assert set(answer) == {"hot", "what"} and answer["what"] in ("pump", "valve")
        assert said.choices[0].finish_reason == "stop"
        assert set(said.stonechat["confidence"]) == {"hot", "what"}

    def test_a_pydantic_class_is_parsed(self, client):
        pydantic = pytest.importorskip("pydantic")

        class Reading(pydantic.BaseModel):
            hot: bool
            what: Literal["pump", "valve"]

        said = client.chat.completions.parse(model="chat", messages=MESSAGES, response_format=Reading)
        assert isinstance(said.choices[0].message.parsed, Reading)

    def test_any_json_object(self, client):
        said = client.chat.completions.create(
            model="chat", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=200
        )
        if said.choices[0].finish_reason == "stop":  # random weights may write strings without end
            assert isinstance(json.loads(said.choices[0].message.content), dict)
        assert said.choices[0].message.content.startswith("{")

    def test_an_answer_that_its_limit_cut_ended_by_length(self, client):
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 10**11}}, "required": ["n"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        for stream in (False, True):
            with pytest.raises((openai.BadRequestError, openai.APIError)) as refused:
                said = client.chat.completions.create(
                    model="chat", messages=MESSAGES, response_format=wanted, max_tokens=3, stream=stream
                )
                list(said)
            assert "token" in str(refused.value)

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_an_error_speaks_of_the_limit_as_the_client_does(self, client, name, stream):
        schema = {"type": "string", "enum": ["an answer that is much longer than three tokens"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        with pytest.raises(openai.APIError, match=f"raise {name}, or ask for less"):
            list(client.chat.completions.create(
                model="chat", messages=MESSAGES, response_format=wanted, stream=stream, **{name: 3}
            ))  # fmt: skip

    def test_sampling_repeats_with_a_seed(self, client):
        def ask(seed: int) -> str:
            said = client.chat.completions.create(
                model="chat", messages=MESSAGES, max_completion_tokens=12, temperature=1.5, top_p=0.95, seed=seed
            )
            return said.choices[0].message.content

        assert ask(3) == ask(3)
        assert len({ask(seed) for seed in range(5)}) > 1

    def test_a_stop_text_is_not_in_the_answer(self, client):
        whole = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=8).choices[0].message.content
        stop = whole[3]
        said = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=8, stop=stop)
        assert said.choices[0].message.content == whole[: whole.index(stop)]
        assert said.choices[0].finish_reason == "stop"

    def test_a_text_is_continued_without_a_template(self, client, here):
        said = client.completions.create(model="chat", prompt="Once", max_tokens=6)
        assert said.choices[0].text == "".join(here.generate("Once", max_new=6))
        pieces = client.completions.create(model="chat", prompt="Once", max_tokens=6, stream=True)
        assert "".join(chunk.choices[0].text for chunk in pieces) == said.choices[0].text

    def test_vectors_in_both_encodings(self, client, bundles):
        texts = ["the pump is hot", "calm"]
        said = client.embeddings.create(model="vectors", input=texts)  # the client asks for base64 by itself
        floats = client.embeddings.create(model="vectors", input=texts[0], encoding_format="float")
        with EncoderModel.open(bundles("bert-embed").path, threads=1) as model:
            wanted = model.embed(texts)
        # the gateway rounds JSON numbers to six digits; base64 is float32 as it is
        np.testing.assert_allclose([entry.embedding for entry in said.data], wanted, atol=1e-6)
        np.testing.assert_allclose(floats.data[0].embedding, wanted[0], atol=1e-6)
        assert said.usage.prompt_tokens > floats.usage.prompt_tokens > 0
        raw = client.embeddings.with_raw_response.create(model="vectors", input="calm", encoding_format="base64")
        packed = base64.b64decode(json.loads(raw.http_response.content)["data"][0]["embedding"])
        np.testing.assert_allclose(struct.unpack(f"<{len(packed) // 4}f", packed), wanted[1], atol=1e-6)

    def test_what_is_asked_of_encoders_alone(self, client):
        long = "calm " * 3000
        with pytest.raises(openai.BadRequestError, match="truncate"):
            client.embeddings.create(model="vectors", input=long)
        assert client.embeddings.create(model="vectors", input=long, extra_body={"truncate": True}).data[0].embedding
        plain, query = (
            client.embeddings.create(model="vectors", input="calm", extra_body=more).data[0].embedding
            for more in ({}, {"prompt_name": "query"})
        )
        assert plain != query
        for name, value in (("to", "fr"), ("truncate", True)):
            with pytest.raises(openai.BadRequestError, match=f"{name} belongs to"):
                client.chat.completions.create(model="chat", messages=MESSAGES, extra_body={name: value})

    def test_a_model_of_the_wrong_kind(self, client):
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
            client.chat.completions.create(model="vectors", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="no vectors"):
            client.embeddings.create(model="chat", input="x")

    def test_a_prompt_that_is_too_long(self, client):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "word " * 2000}])
        assert refused.value.code == "context_length_exceeded"

    def test_clients_at_the_same_time_queue_and_do_not_mix(self, client):
        texts = [f"Question {number}?" for number in range(6)]
        alone = {t: ask_once(client, t) for t in texts}
        together: dict[str, str] = {}
        threads = [threading.Thread(target=lambda t=t: together.update({t: ask_once(client, t)})) for t in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert together == alone

    def test_asyncio(self, url):
        import asyncio

        async def ask() -> str:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
                stream = await client.chat.completions.create(
                    model="chat", messages=MESSAGES, max_tokens=5, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

        assert asyncio.run(ask())


def ask_once(client: openai.OpenAI, text: str) -> str:
    said = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": text}], max_tokens=6)
    return said.choices[0].message.content


@pytest.fixture
def other(url: str) -> hub.InferenceClient:
    return hub.InferenceClient(base_url=f"{url}/v1", api_key="none")


class TestHuggingFace:
    def test_a_chat_and_its_stream(self, other, client):
        said = other.chat_completion(MESSAGES, model="chat", max_tokens=8)
        assert said.choices[0].message.content == ask_once_of(client, 8)
        pieces = other.chat_completion(MESSAGES, model="chat", max_tokens=8, stream=True)
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == said.choices[0].message.content

    def test_a_schema(self, other):
        wanted = {"type": "json_schema", "json_schema": {"name": "reading", "schema": SCHEMA}}
        said = other.chat_completion(MESSAGES, model="chat", response_format=wanted)
        assert set(json.loads(said.choices[0].message.content)) == {"hot", "what"}


@pytest.mark.slow
class TestLangChain:
    """`pip install langchain-openai`; what a chain sends is more than what our own tests think of. About 10 s."""

    @pytest.fixture
    def chain(self, serving: Callable[..., str]) -> object:
        langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
        url = serving(Bundles({"log-triage": EXAMPLES / "log-triage" / "bundle"}, threads=1))
        return langchain.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="log-triage", max_retries=0)

    def test_a_call_its_stream_and_several_at_once(self, chain):
        said = chain.invoke("kernel: eth3: Link is Down").content
        assert json.loads(said)["category"] == "network"
        assert "".join(piece.content for piece in chain.stream("kernel: eth3: Link is Down")) == said
        found = [json.loads(message.content)["category"] for message in chain.batch(["disk full on /dev/sda"] * 2)]
        assert found == ["storage", "storage"]

    def test_a_class_is_filled_in(self, chain):
        pydantic = pytest.importorskip("pydantic")
        labels = Literal["none", "network", "storage", "memory", "auth", "hardware", "application"]
        triage = pydantic.create_model(
            "Triage", category=(labels, ...), priority=(Literal["low", "normal", "high"], ...)
        )
        found = chain.with_structured_output(triage, method="json_schema").invoke("kernel: eth3: Link is Down")
        assert found == triage(category="network", priority="high")


def ask_once_of(client: openai.OpenAI, max_tokens: int) -> str:
    said = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=max_tokens)
    return said.choices[0].message.content
