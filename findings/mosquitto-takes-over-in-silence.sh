#!/bin/sh
# mosquitto 2.0.11-1.2+deb12u2 (Debian 12), MQTT 5: a second client comes with the client id of one that is connected
#
# MQTT 5 has a reason code for this, 0x8E "Session taken over", and says that the broker sends it in a DISCONNECT to the
# first client. This broker closes the first connection without a packet. So the first client cannot tell a takeover
# from a broker that restarts, connects again, throws the second one out, and so on without end; a client that wants to know
# has to find out by other means, such as a retained message that says which process has the id.
#
# Seen:
#   connected: 0x00, twice
#   the first connection ends with: no packet
set -eu
folder=$(mktemp -d)
trap 'kill "$broker" 2>/dev/null || true; rm -rf "$folder"' EXIT
broker=
cd "$folder"
chmod 755 .
version=2.0.11-1.2+deb12u2
apt-get -qq download mosquitto=$version libmosquitto1=$version libcjson1 libwebsockets17 libev4 libuv1 libdlt2 libwrap0 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
LD_LIBRARY_PATH=$(find "$PWD/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
export LD_LIBRARY_PATH
root/usr/sbin/mosquitto -h | head -1 | grep -q 'version 2\.0\.11$' || { echo "another version: $(root/usr/sbin/mosquitto -h | head -1)"; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
root/usr/sbin/mosquitto -p "$port" 2>log &
broker=$!
cat > seen.py <<'PYTHON'
import socket
import struct
import sys
import time


def text(data):
    return struct.pack(">H", len(data)) + data


def connect(port, client_id):
    for _ in range(100):
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    connection.settimeout(20)
    body = text(b"MQTT") + bytes([5, 2]) + struct.pack(">H", 60) + b"\0" + text(client_id)
    connection.sendall(bytes([0x10, len(body)]) + body)
    return connection, connection.recv(200)[3]  # CONNACK: type, length, flags, reason code


first, one = connect(int(sys.argv[1]), b"sensor")
second, two = connect(int(sys.argv[1]), b"sensor")
print(f"connected: 0x{one:02x}," + (" twice" if one == two else f" then 0x{two:02x}"))
print("the first connection ends with:", first.recv(200).hex() or "no packet")
PYTHON
python3 seen.py "$port" > seen
cat seen
diff - seen <<'SEEN'
connected: 0x00, twice
the first connection ends with: no packet
SEEN
