"""`stonechat check BUNDLE --board ID`, its baseline, and `stonechat boards`."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import boards
from boards import board_ids
from device_runtime.errors import ConfigurationError
from device_runtime.machine import memory
from toolkit.baseline import growth, read_baseline
from toolkit.cli import main

BOARD = ("--board", "raspberry-pi-zero-2-w")


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    return code, *capfd.readouterr()


def test_json_has_every_figure_and_the_verdict(pi_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, "check", pi_bundle, *BOARD, "--json")
    result = json.loads(out)
    assert (code, err, result["fits"], result["problems"]) == (0, "", True, [])
    assert {f["kind"] for f in result["figures"].values()} == {"measured", "computed", "quoted"}
    assert result["figures"]["ceiling"]["unit"] == "tok/s"


def test_a_packed_bundle_has_the_same_figures(
    pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "b.zip"
    assert run(capfd, "bundle", "pack", pi_bundle, "-o", packed)[0] == 0
    assert run(capfd, "check", packed, *BOARD) == run(capfd, "check", pi_bundle, *BOARD)
    code, _, err = run(capfd, "check", packed)
    assert (code, err) == (
        2,
        f"stonechat: {packed} is a packed bundle; say for which board: --board ID (`stonechat boards list`).\n",
    )


@pytest.mark.parametrize("content", [b"", b"no zip", b"other.txt", "cut"])
def test_a_zip_that_is_no_bundle_says_what_it_lacks(
    content: bytes | str, pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b.zip"
    if content == b"other.txt":
        with zipfile.ZipFile(file, "w") as other:
            other.writestr("other.txt", "x")
        expected = "the zip begins with 'other.txt'; in a packed bundle manifest.json comes first."
    elif content == "cut":
        run(capfd, "bundle", "pack", pi_bundle, "-o", file)
        os.truncate(file, file.stat().st_size // 2)
        expected = "it is truncated: "
    else:
        file.write_bytes(bytes(content))  # type: ignore[arg-type]
        expected = "" if not content else "it is not a packed bundle; make one with `stonechat bundle pack DIR"
    code, out, err = run(capfd, "check", file, *BOARD)
    assert (code, out) == (1, "")
    assert err.startswith(f"stonechat: {file}: {expected}")


def test_what_does_not_fit_is_exit_5_in_json_too(pi_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "check", pi_bundle, "--board", "raspberry-pi-zero", "--json")
    result = json.loads(out)
    assert (code, result["fits"], result["largest_context"]) == (5, False, 0)
    assert "Armv6" in result["problems"][0] and result["remedies"]


def test_what_does_not_fit_can_be_forced_with_a_reason(pi_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check = ("check", pi_bundle, "--board", "raspberry-pi-zero", "--force")
    code, out, err = run(capfd, *check, "measured there.")
    assert code == 0 and out.endswith("it does not fit\n")
    assert "does not fit raspberry-pi-zero:" in err
    assert "forced: measured there. This check ends with 0; `convert --board`, `deploy` and the board itself" in err
    code, out, _ = run(capfd, *check, "measured there", "--json")
    result = json.loads(out)
    assert (code, result["fits"], result["forced"]) == (0, False, "measured there")


def test_a_reason_is_required_and_not_kept_where_nothing_was_forced(
    pi_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(pi_bundle), *BOARD, "--force", " "])
    assert caught.value.code == 2
    assert "a reason is required, such as --force 'measured" in capfd.readouterr().err
    code, out, err = run(capfd, "check", pi_bundle, *BOARD, "--force", "for all cases", "--json")
    assert (code, json.loads(out)["forced"]) == (0, None)
    assert err == "stonechat: --force was not needed: it fits, and costs no more than before\n"


def test_a_board_file_of_your_own(pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    text = (Path(boards.__file__).parent / "raspberry-pi-zero-2-w.yaml").read_text(encoding="utf-8")
    mine.write_text(text.replace("id: raspberry-pi-zero-2-w", "id: mine"), encoding="utf-8")
    assert run(capfd, "boards", "check", mine)[:2] == (0, f"{mine}: board mine, no faults\n")
    assert run(capfd, "check", pi_bundle, "--board", mine)[0] == 0
    mine.write_text(text.replace("cores: 4", "coers: 4"), encoding="utf-8")
    code, _, err = run(capfd, "boards", "check", mine)
    assert code == 2
    assert f"{mine}:2:5: id:" not in err  # faults of single fields come first
    assert f"{mine}:5:40: soc: unknown field 'coers'; did you mean 'cores'?" in err


def test_the_list_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "boards", "list", "--json")
    assert code == 0
    assert [board["id"] for board in json.loads(out)["boards"]] == board_ids()
    shown = json.loads(run(capfd, "boards", "show", "rp2350-psram", "--json")[1])
    assert (shown["class"], shown["flash"]["uf2_family"]) == ("mcu", 0xE48BFF59)


def test_a_baseline_is_written_once_and_fails_when_a_cost_grows(
    pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fit.json"
    check = ("check", pi_bundle, *BOARD, "--baseline", file)
    code, _, err = run(capfd, *check)
    assert (code, err) == (0, f"stonechat: wrote {file}\n")
    assert run(capfd, *check)[0] == 0
    baseline = json.loads(file.read_text())
    baseline["figures"]["weights"] *= 0.9
    file.write_text(json.dumps(baseline))
    code, _, err = run(capfd, *check, "--allow", 5)
    assert code == 1
    assert "weights: " in err and "(+11.1%)" in err and "kv_cache" not in err
    assert run(capfd, *check, "--allow", 12)[0] == 0
    assert run(capfd, *check, "--update-baseline")[0] == 0
    assert run(capfd, *check)[0] == 0


def test_a_baseline_of_another_board_is_refused(
    pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fit.json"
    run(capfd, "check", pi_bundle, *BOARD, "--baseline", file)
    code, _, err = run(capfd, "check", pi_bundle, "--board", "jetson-nano", "--baseline", file)
    assert code == 2
    assert "was made for the board 'raspberry-pi-zero-2-w', and this is jetson-nano" in err


def test_update_without_a_file_is_a_mistake(pi_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "check", pi_bundle, *BOARD, "--update-baseline")[0] == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["schema", "board", "figures", "x"]), inner, max_size=4)
        ),
    )
)
def test_any_baseline_is_read_or_refused(tmp_path: Path, data: object) -> None:
    file = tmp_path / "fit.json"
    file.write_text(json.dumps(data))
    try:
        figures = read_baseline(file, "b")
    except ConfigurationError:
        return
    growth(figures, {"x": 1.0}, 0)


def test_convert_takes_what_fits_and_refuses_early(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(__file__).parents[1] / "data" / "checkpoints" / "gqa-tied"
    out = tmp_path / "out"
    code, _, err = run(capfd, "convert", checkpoint, "--board", "raspberry-pi-1", "-o", out, "--fast")
    assert code == 5 and "Armv6" in err and not out.exists()
    code, *_ = run(capfd, "convert", checkpoint, "--board", "rp2350", "-o", out, "--fast")
    assert code == 0
    assert json.loads((out / "manifest.json").read_text())["profile"] == "micro"
    assert run(capfd, "check", out, "--board", "rp2350")[0] == 0
    shutil.rmtree(out)


def test_convert_says_when_it_takes_the_smaller_profile_and_holds_the_result_against_the_board(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A network as small as this one takes less in `pi`: LiteRT's Interpreter has a larger library.
    monkeypatch.setitem(memory._PROCESS, "micro", memory._PROCESS["pi"] - (4 << 20))
    checkpoint = Path(__file__).parents[1] / "data" / "checkpoints" / "gqa-tied"
    board = tmp_path / "mine.yaml"
    text = (Path(boards.__file__).parent / "raspberry-pi-zero-2-w.yaml").read_text(encoding="utf-8")
    text = text.replace("id: raspberry-pi-zero-2-w", "id: mine")
    board.write_text(text.replace("model_budget_kib: 262144", "model_budget_kib: 41500"), encoding="utf-8")
    out = tmp_path / "out"
    code, _, err = run(capfd, "convert", checkpoint, "--board", board, "-o", out, "--fast")
    assert code == 0
    assert "stonechat: the profile pi takes too much memory for mine; converting for micro" in err
    assert run(capfd, "check", out, "--board", board)[0] == 0


def test_a_board_is_shown_whole(capfd: pytest.CaptureFixture[str]) -> None:
    shown = run(capfd, "boards", "show", "rp2350")[1]
    for figure in ("0xe48bff59", "drive RP2350", "firmware at 0x10000000", "models from 0x10200000", "2e8a:000f"):
        assert figure in shown
    refused = run(capfd, "boards", "show", "raspberry-pi-1")[1]
    assert "\n\n" not in refused
    assert "device tree raspberrypi,model-b-plus" in refused
