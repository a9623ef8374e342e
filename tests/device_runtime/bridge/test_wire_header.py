"""sc_wire.h, the serial protocol for a firmware: current, and of one mind with the bridge about every byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.bridge.codec import packed_fields
from device_runtime.bridge.messages import KINDS, Fault, Hello, MessageError, parse

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "wire_header.py"
INCLUDE = ROOT / "device_runtime" / "micro" / "include"
VECTORS = ROOT / "tests" / "data" / "serial_frames.txt"

LATER = {kind.__name__ for kind in KINDS.values() if any(field.since > 1 for field in packed_fields(kind))}
ECHO = """
#include <stdio.h>
#include "sc_wire.h"

/* For each line of hexadecimal digits, a body: what is packed again after unpacking, or "refused". */
int main(void)
{{
    char line[8192];
    while (fgets(line, sizeof line, stdin)) {{
        static uint8_t body[4096], again[4096];
        uint32_t size = 0, packed = 0;
        unsigned byte;
        while (sscanf(line + 2 * size, "%2x", &byte) == 1) {{
            body[size++] = (uint8_t)byte;
        }}
        switch (size ? body[0] : 0) {{
{cases}
        }}
        for (uint32_t i = 0; i < packed; i++) {{
            printf("%02x", again[i]);
        }}
        puts(packed ? "" : "refused");
        fflush(stdout);
    }}
    return 0;
}}
"""
CASE = """
        case SC_WIRE_{upper}: {{
            sc_wire_{lower} message;
            if (sc_wire_unpack_{lower}(&message, body + 1, size - 1)) {{
                packed = sc_wire_pack_{lower}(&message, again, sizeof again{version});
            }}
            break;
        }}"""


def test_the_header_is_current():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("wire")
    names = [kind.__name__ for kind in KINDS.values() if kind.__name__ != "Ping"]
    cases = "".join(
        CASE.format(upper=name.upper(), lower=name.lower(), version=", 3" if name in LATER else "") for name in names
    )
    source = folder / "echo.c"
    source.write_text(ECHO.format(cases=cases + "\n        case SC_WIRE_PING: again[0] = body[0]; packed = 1; break;"))
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsanitize=undefined", "-g"]
    program = folder / "echo"
    subprocess.run([compiler, *flags, f"-I{INCLUDE}", source, "-o", program], check=True)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def ask(body: bytes) -> str:
            process.stdin.write(body.hex() + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield ask
        process.stdin.close()


def test_every_golden_body_comes_out_of_c_as_it_went_in(echo):
    bodies = [line.split()[1] for line in VECTORS.read_text(encoding="ascii").splitlines()]
    found = [body for body in bodies if body != "-"]
    assert len(found) > 15
    for body in found:
        assert echo(bytes.fromhex(body)) == parse(bytes.fromhex(body)).pack(3).hex()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120) | st.builds(lambda kind, rest: bytes([kind]) + rest, st.sampled_from(sorted(KINDS)),
                                           st.binary(max_size=200)))  # fmt: skip
def test_c_and_python_take_and_refuse_the_same_bodies(echo, body):
    try:
        message = parse(body)
    except MessageError:
        assert echo(body) == "refused"
        return
    again = echo(body)
    assert again != "refused"
    if not isinstance(message, Hello | Fault):  # texts: Python leaves out what cannot be printed
        assert again == message.pack().hex() or b"\x7f" in body or b"\xff" in body  # a NaN may change its payload
