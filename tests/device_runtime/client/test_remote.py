"""The client library: a device's model from Python, with and without asyncio."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from device_runtime.client.remote import RemoteModel
from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import free_port
from tests.support.scripted_model import ScriptedModel


@pytest.fixture
def remote(port):
    """Make a client of a running device; it is closed after the test."""
    made = []

    def make(device, **options):
        protocol = options.pop("protocol", "5")
        model = RemoteModel(BrokerAddress("127.0.0.1", port, protocol=protocol), device.topics.device, **options)
        model.open()
        made.append(model)
        return model

    yield make
    for model in made:
        model.close()


class TestBlocking:
    def test_pieces_and_then_the_whole(self, on_air, remote):
        device = on_air(ScriptedModel(["Open", " the", " window."]))
        answer = remote(device).generate("It is hot.", max_new=9)
        assert "".join(answer) == "Open the window."
        assert (answer.final.finish, answer.final.usage.completion_tokens) == ("stop", 3)
        assert device.model.asked[0][0] == ({"role": "user", "content": "It is hot."},)
        assert device.model.asked[0][1]["max_new"] == 9

    def test_messages_sampling_and_schema_reach_the_model(self, on_air, remote):
        device = on_air(ScriptedModel(["1"]))
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        schema = {"type": "integer"}
        model = remote(device)
        list(model.generate(messages, temperature=0.5, top_k=3, seed=7, schema=schema))
        list(model.generate("x", stop=["."]))
        asked, options = device.model.asked[0]
        assert [m["content"] for m in asked] == ["s", "u"]
        sampling = options["sampling"]
        assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 3, 7)
        assert options["schema"] == schema
        assert device.model.asked[1][1]["stop"] == (".",)

    def test_examples_are_turns_before_the_question(self, on_air, remote):
        device = on_air(ScriptedModel(["1"]))
        examples = [{"prompt": "Is 12 °C too hot?", "answer": {"hot": False}}, {"prompt": "Hello", "answer": "Hi."}]
        list(remote(device).generate("Is 40 °C too hot?", examples=examples))
        turns = [(m["role"], m["content"]) for m in device.model.asked[0][0]]
        assert turns[-5:] == [
            ("user", "Is 12 °C too hot?"),
            ("assistant", '{"hot": false}'),
            ("user", "Hello"),
            ("assistant", "Hi."),
            ("user", "Is 40 °C too hot?"),
        ]

    def test_one_of_several_models_is_named(self, on_air, remote):
        scripts = {"small": ScriptedModel(["small"]), "large": ScriptedModel(["large"])}
        model = remote(on_air(models=(ModelSettings("small"), ModelSettings("large")), scripts=scripts))
        assert ["".join(model.generate("x", model=name)) for name in (None, "large")] == ["small", "large"]
        with pytest.raises(ConfigurationError, match="it has 'small', 'large'"):
            list(model.generate("x", model="huge"))

    def test_without_streaming_there_is_one_piece(self, on_air, remote):
        device = on_air(ScriptedModel(["a", "b", "c"]))
        assert list(remote(device).generate("x", stream=False)) == ["abc"]

    def test_answers_on_one_connection_do_not_mix(self, on_air, remote):
        device = on_air()
        model = remote(device)
        texts = [f"question {i}" for i in range(8)]
        heard: dict[str, str] = {}

        def ask(text: str) -> None:
            heard[text] = "".join(model.generate(text))

        threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert heard == {text: text.upper() for text in texts}

    def test_two_clients_hear_only_their_own(self, on_air, remote):
        device = on_air()
        first, second = remote(device, client="first"), remote(device, client="second")
        answers = [first.generate("one"), second.generate("two")]
        assert ["".join(answer) for answer in answers] == ["ONE", "TWO"]

    def test_cancel_ends_it_with_what_there_is(self, on_air, remote):
        device = on_air(ScriptedModel(["a", "b", "c"], gated=True))
        answer = remote(device).generate("x")
        device.model.gate.release()
        assert next(answer) == "a"
        answer.cancel()
        assert list(answer) == []
        assert (answer.final.finish, answer.final.text) == ("cancelled", "a")

    def test_cancel_before_the_first_piece_is_asked_for_sends_nothing(self, on_air, remote):
        device = on_air()
        model = remote(device)
        answer = model.generate("never")
        answer.cancel()
        assert list(answer) == []
        assert answer.final.finish == "cancelled"
        assert "".join(model.generate("x")) == "X"
        assert len(device.model.asked) == 1

    def test_leaving_the_loop_takes_the_request_back(self, on_air, remote):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        device.model.gate.release()
        for piece in remote(device).generate("x"):
            assert piece == "a"
            break
        final = device.client.until(lambda topic, value: bool(value.get("done")))[-1][1]
        assert final["finish"] == "cancelled"

    def test_a_connection_is_opened_closed_and_opened_again(self, on_air, port):
        device = on_air()
        model = RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device)
        for _ in range(2):
            with model:
                assert "".join(model.generate("x")) == "X"
            with pytest.raises(UnreachableError, match="the connection is not open"):
                list(model.generate("x"))

    def test_mqtt_3(self, on_air, remote):
        device = on_air()
        model = remote(device, protocol="3.1.1")
        assert "".join(model.generate("hello")) == "HELLO"
        device.model.gate = threading.Semaphore(1)
        answer = model.generate("a b c")
        assert next(answer) == "A"
        answer.cancel()
        list(answer)
        assert answer.final.finish == "cancelled"


class TestErrors:
    def test_no_broker(self):
        with pytest.raises(UnreachableError, match="Connection refused"):
            RemoteModel(BrokerAddress("127.0.0.1", free_port()), "x").open()

    def test_no_such_device(self, port):
        with (
            RemoteModel(BrokerAddress("127.0.0.1", port), "nobody-here") as model,
            pytest.raises(UnreachableError, match="no device 'nobody-here'"),
        ):
            list(model.generate("x"))

    def test_what_the_device_refuses(self, on_air, remote):
        device = on_air(ScriptedModel(["a"], gated=True), queue=1)
        model = remote(device)
        held = [model.generate("x") for _ in range(3)]
        threads = [threading.Thread(target=lambda a=answer: list(a)) for answer in held[:2]]
        threads[0].start()
        device.client.until(lambda topic, value: value.get("state") == "busy")
        threads[1].start()  # this one waits, and fills the queue
        device.until_waiting(1)
        with pytest.raises(UnreachableError, match=r"answers busy: .*Retry in"):
            list(held[2])
        for _ in range(10):
            device.model.gate.release()
        for thread in threads:
            thread.join()
        assert [answer.final.finish for answer in held[:2]] == ["stop", "stop"]

    def test_a_device_that_vanishes_in_the_middle(self, on_air, remote, peer):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        answer = remote(device).generate("x")
        device.model.gate.release()
        assert next(answer) == "a"
        peer().publish(device.topics.state, {"state": "lost", "boot": 1}, retain=True)  # as the broker would
        with pytest.raises(UnreachableError, match="lost: it vanished without a word"):
            next(answer)

    def test_a_device_that_is_stopped_in_the_middle(self, on_air, remote):
        """Half of an answer does not pass for a whole one."""
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        answer = remote(device).generate("x")
        device.model.gate.release()
        assert next(answer) == "a"
        device.service.stop()
        with pytest.raises(UnreachableError, match="stopped in the middle of its answer"):
            next(answer)
        assert (answer.final.finish, answer.final.text) == ("cancelled", "a")

    def test_close_ends_an_answer_under_way_here_and_there(self, on_air, remote):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        model = remote(device)
        answer, errors = model.generate("x"), []
        device.model.gate.release()
        assert next(answer) == "a"

        def wait() -> None:
            try:
                next(answer)
            except UnreachableError as error:
                errors.append(str(error))

        waiting = threading.Thread(target=wait)
        waiting.start()
        model.close()
        waiting.join(30)  # not as long as its timeout, which is 60 s
        assert errors == ["the connection was closed before the answer was whole; ask again."]
        final = device.client.until(lambda topic, value: bool(value.get("done")))[-1][1]
        assert final["finish"] == "cancelled"

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    def test_a_request_that_no_broker_would_hand_on_is_not_sent(self, on_air, remote, protocol):
        device = on_air()
        with pytest.raises(ConfigurationError, match=r"the request has 120\d\d\d bytes; a device reads at most 65536"):
            list(remote(device, protocol=protocol).generate("ü" * 60_000))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"temperature": 11},
            {"max_new": 0},
            {"timeout_s": 0},
            {"timeout_s": float("nan")},
            {"stop": [""]},
            {"stop": ["."], "schema": {}},
            {"schema": []},
            {"examples": [{"prompt": "x"}]},
            {"schema": {"maximum": float("nan")}},
            {"prompt": "\udcff"},
        ],
    )
    def test_arguments_out_of_bounds_are_refused_before_anything_is_sent(self, arguments, port):
        model = RemoteModel(BrokerAddress("127.0.0.1", port), "x")
        with pytest.raises(ConfigurationError):
            model.generate(**({"prompt": "x"} | arguments))


class TestAsyncio:
    def test_pieces_come_while_the_loop_goes_on(self, on_air, port):
        device = on_air(ScriptedModel(["a", "b"], gated=True))

        async def tick() -> None:
            for _ in range(10):
                await asyncio.sleep(0.01)
            device.model.gate.release()  # there is no piece before the loop has gone on

        async def main() -> list[str]:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device) as model:
                ticking = asyncio.create_task(tick())
                pieces = []
                async for piece in model.generate("x"):
                    pieces.append(piece)
                    device.model.gate.release()
                    device.model.gate.release()
                await ticking
                return pieces

        assert asyncio.run(main()) == ["a", "b"]

    def test_any_number_at_once(self, on_air, port):
        """More than a loop has threads: all are asked before the first is answered."""
        count = 50
        device = on_air(ScriptedModel(gated=True), queue=count)

        async def main() -> list[str]:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device) as model:

                async def ask(text: str) -> str:
                    return "".join([piece async for piece in model.generate(text)])

                answers = asyncio.gather(*(ask(f"q {i}") for i in range(count)))
                await asyncio.to_thread(device.until_waiting, count - 1)
                for _ in range(3 * count):
                    device.model.gate.release()
                return list(await answers)

        assert asyncio.run(main()) == [f"Q {i}" for i in range(count)]

    def test_a_cancelled_task_cancels_at_the_device(self, on_air, port):
        device = on_air(ScriptedModel(["a", "b", "c"], gated=True))

        async def main() -> None:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device) as model:
                answer = model.generate("x")

                heard = asyncio.Event()

                async def read() -> None:
                    async for _ in answer:
                        heard.set()

                task = asyncio.create_task(read())
                device.model.gate.release()
                await heard.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(main())
        seen = device.client.until(lambda topic, value: bool(value.get("done")))
        assert seen[-1][1]["finish"] == "cancelled"

    def test_a_loop_does_not_wait_for_a_silent_device(self, port, peer):
        device = peer()  # that takes everything and says nothing
        device.publish("stonechat/1/silent/out/state", {"state": "ready", "boot": 1}, retain=True)

        async def main() -> None:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), "silent") as model:

                async def read() -> None:
                    async for _ in model.generate("x", timeout_s=600):
                        pass

                await asyncio.wait_for(read(), 0.2)

        started_s = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(main())
        assert time.monotonic() - started_s < 120

    def test_errors_come_out_of_the_loop(self, port):
        async def main() -> None:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), "nobody-here") as model:
                async for _ in model.generate("x"):
                    pass

        with pytest.raises(UnreachableError, match="no device 'nobody-here'"):
            asyncio.run(main())
