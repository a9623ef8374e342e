"""`stonechat serve` with a scripted model in place of the engine: it repeats a prompt in upper case.

STONECHAT_SCRIPT_PIECE_S: how long it takes for each word.
STONECHAT_SCRIPT_HOLD: a file; while it is there, no word comes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from device_runtime.device import models  # noqa: E402
from tests.support.scripted_model import ScriptedAnswer, ScriptedModel  # noqa: E402
from toolkit.cli import serve  # noqa: E402

PIECE_S = float(os.environ.get("STONECHAT_SCRIPT_PIECE_S", "0.005"))
HOLD = os.environ.get("STONECHAT_SCRIPT_HOLD", "")


class SlowAnswer(ScriptedAnswer):
    """Takes its time for each piece, as a model does."""

    def __next__(self) -> str:
        time.sleep(PIECE_S)
        while os.path.exists(HOLD) and not self._cancelled.is_set():
            time.sleep(0.005)
        return super().__next__()


class SlowModel(ScriptedModel):
    """Repeats a prompt in upper case."""

    tokenizer = SimpleNamespace(special_tokens={})
    manifest = SimpleNamespace(
        task="generate", instruction=None, chat_template="x", expires=None, tokenizer=tokenizer, purpose=None
    )

    def check_schema(self, schema: object, max_new: object = None) -> None:
        """Any will do."""

    @classmethod
    def open(cls, *_: object, **__: object) -> SlowModel:
        return cls()

    def generate(self, prompt, **options):  # type: ignore[no-untyped-def]
        answer = super().generate(prompt, **options)
        self.asked.clear()  # it may be asked for hours
        return SlowAnswer(answer._pieces, None)


if __name__ == "__main__":
    models.open_model = SlowModel.open  # type: ignore[assignment]
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    sys.exit(serve.run(parser.parse_args()))
