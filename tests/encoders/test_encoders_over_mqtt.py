"""A device with an encoder, a classifier and a translator over a real broker; and a link that a classifier answers."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.client.remote import RemoteModel
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.encoder.translator import Translator
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import mosquitto
from tests.support.mqtt_peer import Peer
from tests.support.tuned_encoder import tuned_encoder
from toolkit.cli import main

DEVICE = "test-pi"
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  labels: {{bundle: "{labels}", threads: 1}}
  vectors: {{bundle: "{vectors}", threads: 1}}
  words: {{bundle: "{words}", threads: 1, max_new: 6}}
  notes: {{bundle: "{notes}", threads: 1}}
devices:
  test-pi: {{model: [labels, vectors, words, notes], links: [mood, notes]}}
links:
  - name: mood
    from: plant/+/note
    prompt: "{{{{ text }}}}"
    answer: {{type: object, properties: {{label: {{enum: [calm, odd, alarm]}}}}, required: [label]}}
    to: plant/{{{{ topic[1] }}}}/mood
  - name: notes
    from: plant/+/said
    model: notes
    prompt: "{{{{ text }}}}"
    unsure: {{below: 0.999, do: flag}}
    to: plant/{{{{ topic[1] }}}}/notes
"""


@pytest.fixture(scope="module")
def port(bundles: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The broker's, with the device ready."""
    folder = tmp_path_factory.mktemp("fleet")
    names = {"labels": "bert-classify", "vectors": "bert-embed", "words": "marian"}
    paths = {model: bundles(name).path for model, name in names.items()}
    paths["notes"] = tuned_encoder(folder / "notes")
    with mosquitto(folder) as port, open(folder / "log", "w") as log:
        (folder / "fleet.yaml").write_text(FLEET.format(port=port, **paths))
        command = [sys.executable, "-m", "toolkit", "serve", str(folder / "fleet.yaml"), "--device", DEVICE]
        process = subprocess.Popen([*command, "--state-dir", str(folder)], stdout=log, stderr=log)
        try:
            peer = Peer(port)
            peer.subscribe(f"stonechat/1/{DEVICE}/out/state")
            while peer.next()[1]["state"] != "ready":
                pass
            peer.close()
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (folder / "log").read_text()


@pytest.fixture
def remote(port: int) -> Iterator[RemoteModel]:
    with RemoteModel(BrokerAddress.from_url(f"mqtt://127.0.0.1:{port}"), DEVICE) as model:
        yield model


def asked(remote: RemoteModel, text: str, **options: object):
    answer = remote.generate(text, **options)
    list(answer)
    return answer.final


def test_a_classifier_answers_with_labels_and_probabilities(remote, bundles):
    final = asked(remote, "the pump is hot", task="classify")
    with EncoderModel.open(bundles("bert-classify").path, threads=1) as model:
        here = model.classify("the pump is hot")
    assert json.loads(final.text) == here.answer
    assert final.probabilities["label"] == pytest.approx(here.probabilities["label"], abs=1e-5)
    assert final.finish == "stop"
    assert final.usage.prompt_tokens == here.tokens


def test_an_encoder_answers_with_its_vector(remote, bundles):
    final = asked(remote, "the pump is hot", model="vectors", task="embed", prompt_name="query")
    with EncoderModel.open(bundles("bert-embed").path, threads=1) as model:
        (here,) = model.embed("the pump is hot", prompt_name="query")
    assert final.text == ""
    np.testing.assert_allclose(final.embedding, here, atol=1e-5)


def test_a_translator_answers_with_a_translation(remote, bundles):
    with Translator.open(bundles("marian").path, threads=1) as model:
        here = model.translate("the pump is hot", max_new=6)
    assert asked(remote, "the pump is hot", model="words").text == here


def test_a_request_for_another_task_is_refused_with_the_models_own(remote):
    with pytest.raises(ConfigurationError, match="task is translate, and this model's is classify"):
        asked(remote, "the pump", task="translate")
    with pytest.raises(ConfigurationError, match="prompt_name belongs to embed"):
        asked(remote, "the pump", prompt_name="query")


def test_a_text_that_is_too_long_is_refused_or_cut(remote):
    with pytest.raises(ConfigurationError, match="94 at most"):
        asked(remote, "pump " * 200)
    assert asked(remote, "pump " * 200, truncate=True).usage.prompt_tokens == 96


def test_an_encoder_that_was_tuned_for_a_task_answers_requests_as_any_trained_bundle(remote, port):
    final = asked(remote, "The pump is HOT", model="notes")
    assert json.loads(final.text).keys() == final.confidence.keys() == {"state", "soon"}
    assert final.unfamiliar is None
    nothing = asked(remote, "zqxj kwvz qqzx xjzk", model="notes")
    assert nothing.unfamiliar and "none that the model was trained on" in nothing.reason


def test_ask_and_chat_say_what_was_unfamiliar(port, capfd, monkeypatch):
    whom = ["--broker", f"mqtt://127.0.0.1:{port}", "--device", DEVICE, "--model", "notes"]
    said = "unfamiliar: most of its words are none that the model was trained on\n"
    assert main(["ask", *whom, "zqxj kwvz qqzx xjzk"]) == 0
    found = capfd.readouterr()
    assert json.loads(found.out).keys() == {"state", "soon"} and found.err == said
    monkeypatch.setattr("sys.stdin", io.StringIO("zqxj kwvz qqzx xjzk\nthe pump is hot\n"))
    assert main(["chat", *whom]) == 0
    assert capfd.readouterr().err == said


def test_a_link_of_it_needs_no_answer_and_says_how_sure_it_is(port):
    listening = Peer(port)
    listening.subscribe("plant/+/notes")
    listening.publish("plant/south/said", {"text": "valve closed"})
    topic, message = listening.next()
    listening.close()
    assert topic == "plant/south/notes"
    assert message["answer"].keys() == message["confidence"].keys() == {"state", "soon"}
    assert message["unsure"] is True and "0.999" in message["reason"]


def test_a_link_is_answered_by_a_classifier_as_by_any_model(port, bundles):
    listening = Peer(port)
    listening.subscribe("plant/+/mood")
    listening.publish("plant/north/note", {"text": "valve closed alarm"})
    topic, message = listening.next()
    listening.close()
    with EncoderModel.open(bundles("bert-classify").path, threads=1) as model:
        assert message["answer"] == model.classify("valve closed alarm").answer
    assert topic == "plant/north/mood"
