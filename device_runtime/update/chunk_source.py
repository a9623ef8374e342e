"""The files of a bundle over MQTT: the device requests ranges of bytes on `out/ota`, chunks come on `in/ota/piece`."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from device_runtime.errors import UnreachableError
from device_runtime.mqtt.ota_messages import MAX_PIECE_BYTES, Chunk, ChunkRequest

__all__ = ["ChunkSource"]

REQUEST_AGAIN_S = 5.0  # after silence: what was requested may have been lost
GIVE_UP_S = 600.0  # of silence; the next update continues from here
WINDOW_BYTES = 16 * MAX_PIECE_BYTES  # that are requested at once


class ChunkSource:
    """A `staging.Source` for one update. `put` is for the network thread, `read` for that of the update."""

    def __init__(self, session: str, publish: Callable[[bytes], object], check: Callable[[], None]) -> None:
        """Prepare.

        Args:
            session: of the update.
            publish: sends a payload to `out/ota`.
            check: called several times a second; raises when the update has been called off.
        """
        self.session, self._publish, self._check = session, publish, check
        self._chunks: queue.Queue[Chunk] = queue.Queue(WINDOW_BYTES // MAX_PIECE_BYTES * 4)
        self._received_s = time.monotonic()

    def put(self, chunk: Chunk) -> None:
        """Take in a chunk; those of other updates are dropped."""
        if chunk.session == self.session:
            with suppress(queue.Full):  # it is requested again
                self._chunks.put_nowait(chunk)

    def read(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """What the file `name` holds from byte `offset` on; nothing if there is no such file.

        Raises:
            UnreachableError: nothing has come for a long time.
        """
        size: int | None = None
        while size is None or offset < size:
            end = offset + WINDOW_BYTES
            self._publish(ChunkRequest(self.session, name, offset, WINDOW_BYTES).to_json())
            while size is None or offset < min(end, size):
                chunk = self._next(name, offset)
                if chunk is None:
                    break  # request it again from here
                size, offset = chunk.size, offset + len(chunk.data)
                if chunk.data:
                    yield chunk.data

    def _next(self, name: str, offset: int) -> Chunk | None:
        """The chunk for this byte; None when it does not come and has to be requested again."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < REQUEST_AGAIN_S:
            self._check()
            try:
                chunk = self._chunks.get(timeout=0.2)
            except queue.Empty:
                continue
            self._received_s = time.monotonic()
            if chunk.file == name and chunk.offset == offset:
                return chunk
        if time.monotonic() - self._received_s > GIVE_UP_S:
            raise UnreachableError(f"nobody sends {name} from byte {offset:,} on; send the order again.")
        return None
