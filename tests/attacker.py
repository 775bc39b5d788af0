"""What a process of the readers' operating-system user can send to the stack's servers.

`run` lets that user call a function of this module in a process of its own, which has Python's standard library only.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - host names are encoded by it
import http.client
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

CLIENTS = "org.apache.hadoop.hdfs.protocol.ClientProtocol"
SECONDS = 20


def run(user: str, function: str, *arguments: object) -> Any:
    """Call a function of this module in a process of `user`; returns what it returns."""
    told = subprocess.run(
        [sys.executable, "-I", "-c", Path(__file__).read_text()],
        input=json.dumps([user, function, *arguments]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
        env={},
    )
    assert told.returncode == 0, told.stderr[-2000:]
    return json.loads(told.stdout)


def become(user: str) -> None:
    """Take on a user for good; Python's own modules may be out of its reach, so all are loaded before."""
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


# --- protocol buffers, as far as they are needed ------------------------------------------------------------


def varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def message(**fields: int | bytes | str) -> bytes:
    """Encode a message; `f1` is field 1."""
    encoded = b""
    for name, value in fields.items():
        number = int(name[1:])
        if isinstance(value, int):
            encoded += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            encoded += varint(number << 3 | 2) + delimited(content)
    return encoded


def delimited(content: bytes) -> bytes:
    return varint(len(content)) + content


def number_at(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def fields_of(content: bytes) -> dict[int, Any]:
    fields: dict[int, Any] = {}
    place = 0
    while place < len(content):
        tag, place = number_at(content, place)
        if tag & 7 == 0:
            fields[tag >> 3], place = number_at(content, place)
        else:
            length, place = number_at(content, place)
            fields[tag >> 3] = content[place : place + length]
            place += length
    return fields


# --- Hadoop's RPC -------------------------------------------------------------------------------------------

ROOT_FOLDER = message(f1="/").hex()


def frame(call: int, *parts: bytes) -> bytes:
    # A call's number is written in zigzag.
    header = message(f1=2, f2=0, f3=call << 1 if call >= 0 else (-call << 1) - 1, f4=os.urandom(16))
    content = b"".join(delimited(part) for part in (header, *parts))
    return struct.pack(">i", len(content)) + content


def call(
    address: list[Any],
    user: str,
    real: str = "",
    protocol: str = CLIENTS,
    method: str = "getFileInfo",
    hexadecimal: str = ROOT_FOLDER,
    context: str = CLIENTS,
    hasty: bool = False,
) -> str:
    """Call a method as a user that is claimed, `real` behind it; returns how it ended and what the server says.

    Parameters
    ----------
    protocol, context
        What the call names, and what the connection names at its start.
    hexadecimal
        The method's argument.
    hasty
        End before anybody looks; nothing is known of the answer.
    """
    claimed = {"f2": message(f1=user, **({"f2": real} if real else {}))} if user else {}
    sent = b"hrpc\x09\x00\x00" + frame(-3, message(**claimed, f3=context))
    sent += frame(0, message(f1=method, f2=protocol, f3=1), bytes.fromhex(hexadecimal))
    with socket.create_connection(tuple(address), SECONDS) as connection:
        connection.sendall(sent)
        if hasty:
            # A reset at once, so that nobody finds whose the socket was.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "gone"
        answer = connection.makefile("rb")
        if len(size := answer.read(4)) < 4:
            return "closed"
        content = answer.read(struct.unpack(">i", size)[0])
    length, place = number_at(content, 0)
    header = fields_of(content[place : place + length])
    if not header.get(2):
        return "answered"
    return f"refused: {header.get(4, b'').decode()}: {header.get(5, b'').decode().splitlines()[0]}"


def hasty_calls(address: list[Any], count: int, user: str, method: str, hexadecimal: str) -> None:
    """Make calls and be gone before anybody looks."""
    for _ in range(count):
        call(address, user, method=method, hexadecimal=hexadecimal, hasty=True)


# --- the other servers --------------------------------------------------------------------------------------


def page(address: list[Any], method: str, path: str, body: str = "", kind: str = "") -> list[Any]:
    """Ask for a page; returns status, where the answer leads, and the text."""
    connection = http.client.HTTPConnection(*address, timeout=SECONDS)
    connection.request(method, path, body or None, {"Content-Type": kind} if kind else {})
    answer = connection.getresponse()
    return [answer.status, answer.getheader("Location"), answer.read().decode(errors="replace")]


def block(address: list[Any], pool: str, number: int, stamp: int) -> int:
    """Ask a DataNode for a block without a token; returns its status, 0 where it gives the block."""
    wanted = message(f1=pool, f2=number, f3=stamp, f4=1)
    token = message(f1=b"", f2=b"", f3="HDFS_BLOCK_TOKEN", f4="")
    asked = message(f1=message(f1=message(f1=wanted, f2=token), f2="attacker"), f2=0, f3=1, f4=0)
    with socket.create_connection(tuple(address), SECONDS) as connection:
        connection.sendall(struct.pack(">hb", 28, 81) + delimited(asked))
        length, answer = 0, b""
        while len(answer) < 2 or len(answer) < length:
            if not (more := connection.recv(4096)):
                break
            answer += more
            length, place = number_at(answer, 0)
            length += place
    _, place = number_at(answer, 0)
    return int(fields_of(answer[place:length]).get(1, 0))


def thrift_call(name: str, arguments: bytes) -> bytes:
    head = struct.pack(">ii", -0x7FFEFFFF, len(name)) + name.encode() + struct.pack(">i", 0)
    return head + arguments + b"\0"


def thrift_text(field: int, text: str) -> bytes:
    return struct.pack(">bhi", 11, field, len(text)) + text.encode()


def metastore(address: list[Any], *calls: str) -> str:
    """Make calls to a Hive Metastore, by default one for its databases; returns what it answers to the last."""
    with socket.create_connection(tuple(address), SECONDS) as connection:
        answer = b""
        for asked in calls or (thrift_call("get_all_databases", b"").hex(),):
            try:
                connection.sendall(bytes.fromhex(asked))
                answer = connection.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                return ""
        return answer.decode(errors="replace")


def make_database(address: list[Any], user: str, name: str, location: str) -> str:
    """Let a Hive Metastore make a database, after claiming to be a user."""
    claim = thrift_text(1, user) + struct.pack(">bhbi", 15, 2, 11, 0)
    database = thrift_text(1, name) + thrift_text(2, "") + thrift_text(3, location)
    made = thrift_call("create_database", struct.pack(">bh", 12, 1) + database + b"\0")
    return metastore(address, thrift_call("set_ugi", claim).hex(), made.hex())


def postgres(address: list[Any], user: str, database: str) -> str:
    """Begin a session of Postgres; returns what it asks for."""
    named = b"".join(part.encode() + b"\0" for part in ("user", user, "database", database, ""))
    with socket.create_connection(tuple(address), SECONDS) as connection:
        connection.sendall(struct.pack(">ii", len(named) + 8, 196608) + named)
        answer = connection.recv(4096)
    kind, _, demand = struct.unpack(">cii", answer[:9])
    asked = answer[9:].split(b"\0")[0] if (kind, demand) == (b"R", 10) else answer
    return asked.decode(errors="replace")


def readable_below(folder: str) -> list[str]:
    """Return the files below a folder that this process can open."""
    return readable([os.path.join(place, name) for place, _, names in os.walk(folder) for name in names])  # noqa: PTH118


def readable(paths: list[str]) -> list[str]:
    """Return the files that this process can open."""
    found = []
    for path in paths:
        try:
            with Path(path).open("rb"):
                found.append(path)
        except OSError:
            pass
    return found


if __name__ == "__main__":
    user, function, *given = json.load(sys.stdin)
    become(user)
    json.dump(globals()[function](*given), sys.stdout)
