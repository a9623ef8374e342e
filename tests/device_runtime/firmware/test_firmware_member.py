"""The firmware as a process of this machine (tests/support/host_boards.py) answers as the library does: on its console,
behind the bridge in tokens and in text, held to a schema, drawn with a seed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serial

from converters.emit.c.bundle import write_bundle_image
from converters.emit.c.image import SectionKind, read_image
from device_runtime.bridge.frames import FrameReader, frame
from device_runtime.bridge.link import Link
from device_runtime.bridge.messages import Capability, Fault, FaultCode, Greet, Hello, Piece, Prompt, Start, parse
from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MODEL
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampling
from device_runtime.engine.schema.identity import schema_identity
from device_runtime.errors import SchemaError
from device_runtime.tasks.answering import Answerer, confidence_of
from tests.support.host_boards import HostBoard, build_host_board, host_board_file, write_host_flash
from toolkit.cli import main
from toolkit.firmware.container import wrap
from toolkit.firmware.slots import model_image

CHECKPOINT = Path(__file__).parents[2] / "data" / "checkpoints" / "gqa-tied"
EXAMPLES = Path(__file__).parents[3] / "examples"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "severity": {"enum": ["ok", "warn", "alarm"]},
        "bar": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["severity", "bar"],
}
MESSAGES = [{"role": "user", "content": "Boiler 3 reads 93 °C and 2.1 bar."}]
LONG = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is wrong with pump 7? " * 2}]
PROMPT = b"\r\n> "


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("member")
    (folder / "answer.json").write_text(json.dumps(SCHEMA))
    command = ["convert", str(CHECKPOINT), "--profile", "micro", "--context", "160", "--fast"]
    assert main([*command, "--schema", str(folder / "answer.json"), "-o", str(folder / "bundle")]) == 0
    return Bundle.open(folder / "bundle")


@pytest.fixture(scope="module")
def local(bundle: Bundle) -> Iterator[LanguageModel]:
    with LanguageModel.open(bundle.path, backend="native") as model:
        yield model


@pytest.fixture(scope="module")
def board(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostBoard]:
    folder = tmp_path_factory.mktemp("board")
    file = host_board_file()
    program = build_host_board(folder, bundle.path / "model.image", file)
    firmware = wrap(b"a host runs itself", "firmware", version="1.0.0", security_counter=0)
    model = model_image((bundle.path / "model.image").read_bytes(), bundle.manifest, file)
    with HostBoard(program, write_host_flash(folder / "flash.bin", file, firmware, model)) as running:
        yield running


@pytest.fixture(params=["tokens", "text"])
def model(request: pytest.FixtureRequest, board: HostBoard, bundle: Bundle) -> Iterator[SerialModel]:
    opened = SerialModel(Link(board.port), bundle if request.param == "tokens" else None).open()
    yield opened
    opened.close()


def finished(answer: Any) -> tuple[str, Any]:
    return "".join(answer), answer.result


@pytest.mark.parametrize("messages", [MESSAGES, LONG], ids=["one", "two"])
@pytest.mark.parametrize("max_new", [1, 12, None])
def test_an_answer_is_that_of_the_library(
    model: SerialModel, local: LanguageModel, messages: list[dict[str, str]], max_new: int | None
) -> None:
    text, result = finished(model.generate(messages, max_new=max_new))
    expected, theirs = finished(local.generate(messages, max_new=max_new))
    assert text == expected
    assert (result.finish, result.prompt_tokens, result.completion_tokens) == (
        theirs.finish, theirs.prompt_tokens, theirs.completion_tokens
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_answer_is_that_of_the_library(model: SerialModel, local: LanguageModel, seed: int) -> None:
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.9, seed=seed)
    asked = {"max_new": 24, "sampling": sampling}
    assert finished(model.generate(MESSAGES, **asked))[0] == finished(local.generate(MESSAGES, **asked))[0]


@pytest.mark.parametrize("messages", [MESSAGES, LONG], ids=["one", "two"])
def test_an_answer_is_held_to_a_schema_of_the_image(model: SerialModel, messages: list[dict[str, str]]) -> None:
    answer = model.generate(messages, schema=SCHEMA)
    text, result = finished(answer)
    found = json.loads(text)
    assert found["severity"] in ("ok", "warn", "alarm") and 0 <= found["bar"] <= 99 and len(found) == 2
    assert result.finish == "stop"
    assert answer.confidence is not None and 0 < answer.confidence <= 1


READINGS = {
    "boiler-advisor": [
        {"temp_c": temp_c, "bar": bar, "flow_l_min": flow}
        for temp_c, bar, flow in (
            (61.0, 1.6, 12.0),
            (97.5, 2.1, 11.0),
            (70.0, 3.4, 12.5),
            (40.0, 1.5, 0.0),
            (300.0, 0.2, 3.0),
        )
    ],
    "home-commands": [  # whose confidence was fitted
        {"text": text} for text in ("kitchen lights maybe dim forty", "turn the thing off upstairs", "blinds half")
    ],
}


@pytest.mark.parametrize("name", READINGS)
def test_a_trained_bundle_answers_typed_as_the_library_does(name: str, tmp_path: Path) -> None:
    """The whole answer and how sure it is, behind the bridge in tokens and in text."""
    example = EXAMPLES / name / "bundle"
    bundle = Bundle.open(example)
    image = tmp_path / "model.image"
    write_bundle_image(bundle, path=image)
    file = host_board_file()
    flash = write_host_flash(
        tmp_path / "flash.bin", file, wrap(b"x", "firmware", version="1", security_counter=0),
        model_image(image.read_bytes(), bundle.manifest, file),
    )  # fmt: skip
    answerer = Answerer.open(example, backend="native")  # LiteRT's sums differ by a step of int8 here and there
    assert answerer.purpose is not None
    is_fitted = SectionKind.CALIBRATION in read_image(image.read_bytes(), "image")
    fitted = False
    with HostBoard(build_host_board(tmp_path / "board", image, file), flash) as running:
        for one in (bundle, None):
            model = SerialModel(Link(running.port), one).open()
            for reading in READINGS[name]:
                # the bridge reads an input as a Pi does; without the bundle it does not know how
                purpose = answerer.purpose
                asked = purpose.asked(reading) if one is not None else purpose.inputs.prompt(reading).text
                schema = None if one is not None else answerer.purpose.answer
                answer = model.generate([{"role": "user", "content": asked}], schema=schema)
                text, result = finished(answer)
                expected = answerer.answer(reading)
                assert text == expected.text
                # calibrated by the bridge, or by the image; the exponentials differ in their last bits
                plain = {field: confidence_of(choices, 1.0) for field, choices in expected.choices.items()}
                assert result.confidence == pytest.approx(expected.confidence, rel=2e-3)
                fitted |= plain != pytest.approx(expected.confidence, rel=5e-3)
                assert result.unfamiliar == (expected.unfamiliar if one is not None else ())
                share = math.prod(plain.values())
                assert answer.confidence is not None
                # the board counts the choices of the advice's text too: never surer than the library is of the rest
                assert answer.confidence <= share + 0.001
            model.close()
    assert fitted == is_fitted == (name == "home-commands")


def test_a_schema_that_the_image_does_not_have_is_refused_before_anything_is_sent(model: SerialModel) -> None:
    with pytest.raises(SchemaError, match=r"has 1 JSON schema.*--schema"):
        model.generate(MESSAGES, schema={"type": "object", "properties": {"other": {"type": "boolean"}}})


def test_what_a_board_knows_of_the_last_request_is_not_computed_again(model: SerialModel) -> None:
    first = finished(model.generate(LONG, max_new=4))
    again = finished(model.generate(LONG, max_new=4))
    assert again[0] == first[0]
    assert again[1].cached_tokens == again[1].prompt_tokens - 1


def test_the_board_says_who_it_is(model: SerialModel, bundle: Bundle) -> None:
    hello = model._link.session.hello
    assert hello is not None and hello.version == 3
    assert hello.model.hex() == bundle.manifest.files[MODEL].sha256[:16]
    assert (hello.name, hello.context) == (bundle.manifest.name, 160)
    assert hello.schemas == (schema_identity(SCHEMA),)
    assert hello.boots == 1
    every = Capability.TOKENS | Capability.TEXT | Capability.SAMPLING | Capability.SCHEMAS
    assert hello.capabilities == every


class Console:
    def __init__(self, port: str) -> None:
        self.line = serial.Serial(port, timeout=20)
        self.line.reset_input_buffer()

    def ask(self, text: str) -> str:
        self.line.write(text.encode() + b"\n")
        said = self.line.read_until(PROMPT)
        assert said.endswith(PROMPT), said
        return re.sub(rb"\0[^\0]*\0", b"", said.removesuffix(PROMPT)).decode()  # without frames


@pytest.fixture
def console(board: HostBoard) -> Iterator[Console]:
    opened = Console(board.port)
    opened.ask("/temperature 0")
    opened.ask("/schema 0")
    yield opened
    opened.line.close()


def test_the_console_answers_as_the_library(console: Console, local: LanguageModel) -> None:
    text = MESSAGES[0]["content"]
    console.ask("/max-new 20")
    assert console.ask(text) == finished(local.generate(MESSAGES, max_new=20))[0]
    for name, value in (("temperature", 0.8), ("top-k", 20), ("top-p", 0.95), ("seed", 7)):
        assert console.ask(f"/{name} {value}") == ""
    drawn = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=7)
    assert console.ask(text) == finished(local.generate(MESSAGES, max_new=20, sampling=drawn))[0]
    console.ask("/temperature 0")
    console.ask("/max-new 0")
    console.ask("/schema 1")
    assert set(json.loads(console.ask(text))) == {"severity", "bar"}
    assert "confidence" in console.ask("/last")


@pytest.mark.parametrize(("line", "words"), [
    ("/schema 2", "the image has 1 schemas"), ("/top-k x", "no number"), ("/seed 1.5", "no number"),
    ("/quit", "no such command"), ("/temperature -1", "no number"), ("x" * 1025, "longer than 1,024 bytes"),
    ("x " * 400, "more tokens than the context"), ("/help", "/max-new N"), ("/status", "firmware slot 0"),
])  # fmt: skip
def test_the_console_says_what_it_cannot_do(console: Console, line: str, words: str) -> None:
    assert words in console.ask(line)


def test_a_bridge_of_version_1_gets_tokens_as_it_always_did(board: HostBoard, bundle: Bundle) -> None:
    reader, found = FrameReader(), []

    def until(kind: type) -> Any:
        while True:
            for body in reader.push(line.read(max(1, line.in_waiting))):
                found.append(parse(body))
                if isinstance(found[-1], kind):
                    return found[-1]

    with serial.Serial(board.port, timeout=20) as line:
        line.reset_input_buffer()
        line.write(frame(Greet(1).pack()))
        hello = until(Hello)
        assert hello.version == 1
        prompt = [*bundle.manifest.prefix_tokens, 5, 9]
        data = b"".join(token.to_bytes(4, "little") for token in prompt)
        line.write(frame(Start(77, len(data), 1, 0, 0, 0.0, 1.0, 0, 0).pack(1)))
        line.write(frame(Prompt(77, 0, data).pack(1)))
        assert len(until(Piece).data) == 4
        line.write(frame(Start(78, 4, 1, 0, 0, 0.0, 1.0, 0, 0, (), schema=1).pack()))
        line.write(frame(Prompt(78, 0, data).pack()))
        assert until(Fault).code is FaultCode.MALFORMED  # of a prompt that is no more than the prefix
