"""Long work says how far it is, also where nobody watches."""

from __future__ import annotations

import pytest

from toolkit.progress import ProgressBar


def test_in_a_log_work_of_more_than_a_minute_says_each_minute_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_s = 0.0
    with ProgressBar(clock_s=lambda: now_s) as bar:
        for second in range(150):
            now_s = float(second)
            bar.update("tuning", second / 200, "loss 0.5, 3 min left")
        bar.update("converting", 0.0)
    assert capsys.readouterr().err == "tuning: 30%, loss 0.5, 3 min left\ntuning: 60%, loss 0.5, 3 min left\n"


def test_a_short_one_says_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        bar.update("tuning", 0.5)
    assert capsys.readouterr().err == ""
