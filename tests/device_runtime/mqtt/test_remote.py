"""The client library: a device's model from Python, with and without asyncio."""

from __future__ import annotations

import asyncio
import threading

import pytest
from scripted import ScriptedModel

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.remote import RemoteModel
from tests.brokers import free_port


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
            thread.join(10)
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
        threading.Event().wait(0.3)
        with pytest.raises(UnreachableError, match=r"answers busy: .*Retry in"):
            list(held[2])
        for _ in range(10):
            device.model.gate.release()
        for thread in threads:
            thread.join(5)
        assert [answer.final.finish for answer in held[:2]] == ["stop", "stop"]

    def test_a_device_that_vanishes_in_the_middle(self, on_air, remote, peer):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        answer = remote(device).generate("x")
        device.model.gate.release()
        assert next(answer) == "a"
        peer().publish(device.topics.state, {"state": "lost", "boot": 1}, retain=True)  # as the broker would
        with pytest.raises(UnreachableError, match="lost: it vanished without a word"):
            next(answer)

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
        ],
    )
    def test_arguments_out_of_bounds_are_refused_before_anything_is_sent(self, arguments, port):
        model = RemoteModel(BrokerAddress("127.0.0.1", port), "x")
        with pytest.raises(ConfigurationError):
            model.generate("x", **arguments)


class TestAsyncio:
    def test_pieces_come_while_the_loop_goes_on(self, on_air, port):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        async def main() -> list[str]:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device) as model:
                ticking = asyncio.create_task(tick())
                pieces = []
                asyncio.get_running_loop().call_later(0.2, device.model.gate.release)
                async for piece in model.generate("x"):
                    pieces.append(piece)
                    device.model.gate.release()
                    device.model.gate.release()
                ticking.cancel()
                return pieces

        assert asyncio.run(main()) == ["a", "b"]
        assert ticks >= 10

    def test_many_at_once(self, on_air, port):
        device = on_air()

        async def main() -> list[str]:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device) as model:

                async def ask(text: str) -> str:
                    return "".join([piece async for piece in model.generate(text)])

                return list(await asyncio.gather(*(ask(f"q {i}") for i in range(6))))

        assert asyncio.run(main()) == [f"Q {i}" for i in range(6)]

    def test_a_cancelled_task_cancels_at_the_device(self, on_air, port):
        device = on_air(ScriptedModel(["a", "b", "c"], gated=True))

        async def main() -> None:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), device.topics.device) as model:
                answer = model.generate("x")

                async def read() -> None:
                    async for _ in answer:
                        pass

                task = asyncio.create_task(read())
                device.model.gate.release()
                await asyncio.sleep(0.5)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.sleep(0.3)

        asyncio.run(main())
        seen = device.client.until(lambda topic, value: bool(value.get("done")))
        assert seen[-1][1]["finish"] == "cancelled"

    def test_errors_come_out_of_the_loop(self, port):
        async def main() -> None:
            async with RemoteModel(BrokerAddress("127.0.0.1", port), "nobody-here") as model:
                async for _ in model.generate("x"):
                    pass

        with pytest.raises(UnreachableError, match="no device 'nobody-here'"):
            asyncio.run(main())
