"""Two nodes of a broker that clusters, on loopback: Debian's ejabberd, or its RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.brokers import free_port

__all__ = ["CLUSTERS", "PASSWORD", "ejabberd_pair", "rabbitmq_pair"]

PASSWORD = "any"
START_S = 180.0  # an Erlang node reads a hundred files first

_EJABBERD = """\
hosts: [localhost]
loglevel: warning
auth_method: anonymous
anonymous_protocol: login_anon
allow_multiple_connections: true
listen:
  - {{port: {port}, ip: 127.0.0.1, module: mod_mqtt, backlog: 1000}}
modules:
  mod_mqtt: {{max_queue: 5000}}
"""


@contextmanager
def ejabberd_pair(folder: Path, users: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The MQTT ports of both nodes. It takes every user."""
    with _nodes(folder, _start_ejabberd) as (names, ports, environment):
        _call(environment, folder, names[1], f"ejabberd_cluster:join('{names[0]}')")
        yield ports


@contextmanager
def rabbitmq_pair(folder: Path, users: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The MQTT ports of both nodes. Its plugin for MQTT speaks 3.1.1 up to version 3.12."""
    with _nodes(folder, _start_rabbitmq) as (names, ports, environment):
        for what in ("rabbit:stop()", f"rabbit_mnesia:join_cluster('{names[0]}',disc)", "rabbit:start()"):
            _call(environment, folder, names[1], what)
        for user in users:
            backend, name = "rabbit_auth_backend_internal", f'<<"{user}">>'
            _call(environment, folder, names[0], f'{backend}:add_user({name},<<"{PASSWORD}">>,<<"test">>)')
            everything = ",".join(['<<".*">>'] * 3)
            _call(environment, folder, names[0], f'{backend}:set_permissions({name},<<"/">>,{everything},<<"test">>)')
        yield ports


CLUSTERS = {"ejabberd": ejabberd_pair, "rabbitmq": rabbitmq_pair}


@contextmanager
def _nodes(folder: Path, start) -> Iterator[tuple[list[str], tuple[int, int], dict[str, str]]]:  # type: ignore[no-untyped-def]
    environment = {
        **os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(free_port()), "HOME": str(folder),
    }  # fmt: skip
    (folder / ".erlang.cookie").write_text("COOKIEOFTHETEST")
    (folder / ".erlang.cookie").chmod(0o400)
    names, ports, processes = ["one@127.0.0.1", "two@127.0.0.1"], (free_port(), free_port()), []
    try:
        for name, port in zip(names, ports, strict=True):
            own = folder / name.partition("@")[0]
            own.mkdir()
            with (own / "out.log").open("wb") as log:
                processes.append(start(own, name, port, environment, log))
        for port in ports:
            _await_port(folder, port, processes)
        yield names, ports, environment
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        epmd = shutil.which("epmd")
        if epmd is not None:
            subprocess.run([epmd, "-kill"], env=environment, capture_output=True, check=False)


_LOOPBACK = ("-kernel", "inet_dist_use_interface", "{127,0,0,1}")


def _start_ejabberd(folder, name, port, environment, log):  # type: ignore[no-untyped-def]
    code = sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin"))
    if shutil.which("erl") is None or not code:
        raise FileNotFoundError("ejabberd is not installed (Debian: apt install ejabberd)")
    (folder / "ejabberd.yml").write_text(_EJABBERD.format(port=port))
    own = {"EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"), "EJABBERD_LOG_PATH": str(folder / "ejabberd.log")}
    return subprocess.Popen(
        ["erl", "-noinput", "-boot", "start_sasl", "-name", name, *_LOOPBACK, "-mnesia", "dir", f'"{folder}/mnesia"',
         "-pa", str(code[-1]), "-s", "ejabberd"],
        cwd=folder, env={**environment, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def _start_rabbitmq(folder, name, port, environment, log):  # type: ignore[no-untyped-def]
    server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not server.exists():
        raise FileNotFoundError("RabbitMQ is not installed (Debian: apt install rabbitmq-server)")
    (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{free_port()}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\n"
        "mqtt.allow_anonymous = true\nloopback_users = none\n"
    )
    own = {
        "RABBITMQ_NODENAME": name, "RABBITMQ_USE_LONGNAME": "true", "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"), "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"), "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }  # fmt: skip
    return subprocess.Popen(
        [str(server)], cwd=folder, env={**environment, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def _call(environment: dict[str, str], folder: Path, node: str, what: str) -> None:
    """Have a node compute an expression; its result must be `ok`."""
    module, _, rest = what.partition(":")
    function, _, arguments = rest.partition("(")
    code = (
        f"Found = rpc:call('{node}', {module}, {function}, [{arguments[:-1]}]), "
        'io:format("~p", [Found]), halt(case Found of ok -> 0; _ -> 1 end).'
    )
    found = subprocess.run(
        ["erl", "-noinput", "-hidden", "-name", f"asks{os.getpid()}@127.0.0.1", *_LOOPBACK, "-eval", code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip
    if found.returncode:
        raise RuntimeError(f"{what} at {node}: {found.stdout}{found.stderr}")


def _await_port(folder: Path, port: int, processes: list[subprocess.Popen[bytes]]) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.3)
    said = "\n".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*/*.log"))
    raise RuntimeError(f"no broker came up on port {port}: {said}")
