"""The connection: what a refusal says, what quoting keeps, what a cut leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.errors import ConfigurationError, UnreachableError
from tests.support.brokers import free_port
from tests.support.ssh_servers import SshServer, make_key, ssh_server
from toolkit.ssh.copy import copy_file, file_sha256, put_text
from toolkit.ssh.ssh import Remote, RemoteError, Target


def remote_to(server: SshServer, **changes: object) -> Remote:
    fields = {"identity": server.identity, "options": ("-F", str(server.config))} | changes
    return Remote(Target.parse(server.target), **fields)


@pytest.fixture(scope="module")
def remote(server):
    with remote_to(server) as connected:
        yield connected


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30), max_size=9)
)
def test_arguments_arrive_as_they_are(remote, words):
    out = remote.check('for word in "$@"; do printf "%s\\0" "$word"; done', *words)
    assert out == "".join(word + "\0" for word in words)


def test_exit_codes_and_both_outputs_come_back(remote):
    done = remote.run("echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    with pytest.raises(RemoteError, match="not here"):
        remote.check("echo not here >&2; exit 1")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("pi", Target("pi")),
        ("pi@host", Target("host", "pi")),
        ("pi@host:2222", Target("host", "pi", 2222)),
        ("pi@[fe80::1%eth0]:22", Target("fe80::1%eth0", "pi", 22)),
        ("fe80::1", Target("fe80::1")),
        ("a@b@host", Target("host", "a@b")),
    ],
)
def test_targets_are_read(text, target):
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "@host", "-oProxyCommand=x", "a@-b", "host:", "host:0", "host:99999", "host:x", "a b", "h;x", "[::1", "h\n"],
)
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ConfigurationError, match="expected \\[user@\\]host\\[:port\\]"):
        Target.parse(text)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_is_a_target_or_refused(text):
    try:
        target = Target.parse(text)
    except ConfigurationError:
        return
    assert not target.host.startswith("-")
    assert not (target.user or "").startswith("-")


def test_nobody_there_is_unreachable():
    with (
        pytest.raises(UnreachableError, match=r"does not answer: .*Connection refused"),
        Remote(Target("127.0.0.1", "pi", free_port())),
    ):
        pass


def test_an_unknown_name_is_unreachable():
    with pytest.raises(UnreachableError, match="does not answer"), Remote(Target("nobody.invalid")):
        pass


def test_a_key_that_it_does_not_know_is_refused_by_name(server, tmp_path):
    stranger = make_key(tmp_path / "stranger")
    with (
        pytest.raises(ConfigurationError, match=r"refuses us .*Permission denied.*ssh-copy-id"),
        remote_to(server, identity=stranger),
    ):
        pass


def test_a_missing_key_file_is_named(server, tmp_path):
    with (
        pytest.raises(ConfigurationError, match=r"There is no key file .*nothing"),
        remote_to(server, identity=tmp_path / "nothing"),
    ):
        pass


def test_a_changed_host_key_is_no_plain_failure(server, tmp_path):
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other[0]} {other[1]}\n")
    config = tmp_path / "config"
    config.write_text(f"UserKnownHostsFile {tmp_path}/known_hosts\nStrictHostKeyChecking yes\nIdentityAgent none\n")
    with (
        pytest.raises(ConfigurationError, match="another host key") as caught,
        remote_to(server, options=("-F", str(config))),
    ):
        pass
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in str(caught.value)


def test_an_unknown_host_key_asks_to_look_at_it_once(server, tmp_path):
    config = tmp_path / "config"
    config.write_text(f"UserKnownHostsFile {tmp_path}/none\nStrictHostKeyChecking yes\nIdentityAgent none\n")
    with (
        pytest.raises(ConfigurationError, match=f"not known here yet.*ssh -p {server.port} "),
        remote_to(server, options=("-F", str(config))),
    ):
        pass


def test_nothing_is_left_of_a_connection(server):
    with remote_to(server) as connected:
        sockets = connected._sockets
        assert any(path.is_socket() for path in sockets.iterdir())
    assert not sockets.exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that takes more than one block."""
    path = tmp_path / "a model"
    path.write_bytes(os.urandom(8_000_000))
    return path


def test_a_copy_goes_on_where_a_cut_left_it(tmp_path, model):
    """The server is stopped in the middle of a copy."""
    there, sha256 = tmp_path / "it's there", file_sha256(model)
    incoming, to = str(there / "incoming"), str(there / "model")
    part = Path(incoming) / f"{sha256}.part"
    with ssh_server(tmp_path / "sshd") as server:
        cut: list[int] = []

        def cut_half_way(sent: int) -> None:
            if sent > 3_000_000 and not cut:
                cut.append(sent)
                while not (part.exists() and part.stat().st_size):
                    time.sleep(0.01)
                os.kill(server.session_pid(), signal.SIGKILL)

        with pytest.raises(UnreachableError, match="goes on where it stopped"), remote_to(server) as remote:
            copy_file(remote, model, sha256, incoming, to, on_progress=cut_half_way)
        kept = part.stat().st_size
        assert 0 < kept < model.stat().st_size
        assert not Path(to).exists()
        with remote_to(server) as remote:
            assert copy_file(remote, model, sha256, incoming, to) == model.stat().st_size - kept
            assert Path(to).read_bytes() == model.read_bytes()
            assert copy_file(remote, model, sha256, incoming, to) == 0
        assert not part.exists()


def test_what_arrives_damaged_gets_no_name(remote, tmp_path, model):
    sha256 = file_sha256(model)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{sha256}.part").write_bytes(b"not the beginning of it")
    with pytest.raises(RemoteError, match="it arrived damaged"):
        copy_file(remote, model, sha256, str(tmp_path / "in"), str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    copy_file(remote, model, sha256, str(tmp_path / "in"), str(tmp_path / "to"))
    assert (tmp_path / "to").read_bytes() == model.read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path):
    """One MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("a small disk needs root, and mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_left_as_it_was(remote, small_disk, model):
    with pytest.raises(RemoteError, match=r"a model could not be copied to .*No space left on device"):
        copy_file(remote, model, file_sha256(model), str(small_disk / "in"), str(small_disk / "to"))
    assert [path.name for path in small_disk.rglob("*")] == ["in"]


def test_a_small_file_is_written_whole_or_not_at_all(remote, small_disk):
    to = small_disk / "fleet.yaml"
    assert put_text(remote, "one\n", str(to), mode="640") is True
    assert put_text(remote, "one\n", str(to), mode="640") is False
    assert (to.read_text(), oct(to.stat().st_mode & 0o777)) == ("one\n", "0o640")
    with pytest.raises(RemoteError, match="No space left"):
        put_text(remote, b"x" * 2_000_000, str(to), mode="640")
    assert to.read_text() == "one\n" and list(small_disk.iterdir()) == [to]


def test_ctrl_c_ends_with_130_and_leaves_no_connection(server, tmp_path):
    """What hangs is the board: a command there that does not end."""
    stuck = tmp_path / "stuck"
    stuck.mkdir()
    os.mkfifo(stuck / "device.json")  # reading it waits for ever
    command = [sys.executable, "-m", "toolkit", "device", "status", server.target, *server.flags, "--root", str(stuck)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        end_s = time.monotonic() + 60
        while f"cat\0{stuck}/device.json" not in all_command_lines():
            assert process.poll() is None and time.monotonic() < end_s
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(os.open(stuck / "device.json", os.O_RDWR))  # lets the reader there end
    assert (process.returncode, err) == (130, "\nstonechat: interrupted\n")


def all_command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(found)


TALKATIVE = """#!/bin/sh
echo "Welcome to this board"; echo 4096; echo "{}"; echo "no certificate found" >&2; printf "no end of line"
{shell} -c "$SSH_ORIGINAL_COMMAND"
code=$?
echo "Good bye"; echo "logged out" >&2
exit $code
"""


@pytest.fixture(params=["sh", "bash", "fish", "tcsh"])
def talkative(request, tmp_path):
    """A board whose login shell greets, takes leave, and may quote otherwise than sh."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed (Debian: apt install {request.param})")
    shell = tmp_path / "shell"
    shell.write_text(TALKATIVE.replace("{shell}", request.param))
    shell.chmod(0o755)
    with ssh_server(tmp_path / "sshd", f"ForceCommand {shell}") as server, remote_to(server) as connected:
        yield connected


def test_only_what_is_between_our_own_marks_is_taken(talkative, tmp_path):
    odd = ["it's", 'a "b" $HOME `id` \\n \\\\ !1 !! %s', "", "two\nlines", "Grüße \t é", "-e", "\\'"]
    out = talkative.check('for word in "$@"; do printf "%s\\0" "$word"; done', *odd)
    assert out == "".join(word + "\0" for word in odd)
    done = talkative.run("echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    with pytest.raises(RemoteError, match=r"^no space left$"):
        talkative.check("echo 'no space left' >&2; exit 1")
    lines: list[str] = []
    done = talkative.follow("echo one; echo two >&2; printf three", on_line=lines.append)
    assert sorted(lines) == ["one", "three", "two"] and "Welcome" not in done.out
    assert talkative.feed('cat > "$1"; echo kept', str(tmp_path / "fed"), blocks=[b"a\0b", b"c"]) == "kept\n"
    assert (tmp_path / "fed").read_bytes() == b"a\0bc"
    process = talkative.start("echo held; cat >/dev/null; echo said >&2; exit 3")
    assert process.stdout.readline() == b"held\n"
    process.stdin.close()
    assert talkative.own(process.stderr.read().decode()) == "said\n"
    process.stdout.close()
    assert process.wait() == 3


def test_a_file_is_copied_past_a_greeting(talkative, tmp_path):
    source = tmp_path / "model"
    source.write_bytes(os.urandom(300_000))
    copy_file(talkative, source, file_sha256(source), str(tmp_path / "incoming"), str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == source.read_bytes()
    assert put_text(talkative, "x", str(tmp_path / "small"), mode="644")
    assert not put_text(talkative, "x", str(tmp_path / "small"), mode="644")


def test_what_a_persons_ssh_config_asks_for_their_own_sessions_does_not_reach_ours(server, tmp_path):
    config = tmp_path / "config"
    config.write_text(
        server.config.read_text()
        + "RemoteCommand tmux new -A -s main\nRequestTTY force\nPermitLocalCommand yes\nLocalCommand echo local\n"
        f"LocalForward {free_port()} 127.0.0.1:9\n"
    )
    with remote_to(server, options=("-F", str(config))) as connected:
        assert connected.check("echo out") == "out\n"


def test_a_board_that_runs_no_commands_is_told_from_one_that_is_gone(tmp_path):
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\necho This account is currently not available.\nexit 1\n")
    shell.chmod(0o755)
    with (
        ssh_server(tmp_path / "sshd", f"ForceCommand {shell}") as server,
        remote_to(server) as connected,
        pytest.raises(ConfigurationError, match="does not run our commands; it says: This account is currently not av"),
    ):
        connected.check("true")
