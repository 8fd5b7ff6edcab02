"""Odd answers of HTTP servers, and a raw server on loopback that gives them.

The server is this file run as a script, so that what it holds does not count as the client's memory:
``python answers.py SEED COUNT`` prints its ports and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import random
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.malformed_inputs.seeds import png

PIXEL_ROWS = (b"\x00" + bytes(range(72))) * 17
_N_PORTS = 8  # each is another host to a client, so that one which asks for patience does not speak for all
_SLOW_S = 1.5  # longer than the client waits
_LONGEST = 3_000_000


@dataclass(frozen=True)
class Answer:
    """What a server writes after a request.

    Attributes
    ----------
    name : str
        What is odd about it.
    parts : tuple
        Bytes to write, and pauses in seconds.
    end : str
        Whether the connection is then closed, reset, held open without a word, or kept for the next request.
    image : bytes or None
        What a client must read out of it; None where a row error is right as well.
    """

    name: str
    parts: tuple[bytes | float, ...]
    end: Literal["close", "reset", "hold", "keep"] = "close"
    image: bytes | None = None


def image_of(number: int) -> bytes:
    """Return a PNG that no other number has."""
    return png(24, 17, [(b"tEXt", b"n\x00" + str(number).encode())], rows=PIXEL_ROWS)


def answers(seed: int, n_answers: int, address: str = "http://127.0.0.1:0") -> list[Answer]:
    """Return that many odd answers, which know the `address` of their own server; equal seeds give equal answers."""
    chance = random.Random(seed)
    makers = (_status_line, _header_lines, _lengths, _chunked, _encoded, _redirect, _redirect, _cookies, _patience,
    _patience, _informational, _cut, _noise, _dressed, _dressed)  # fmt: skip
    made = []
    for number in range(n_answers):
        maker = chance.choice(makers)
        made.append(maker(chance, image_of(number), address, number))
    return made


def _whole(body: bytes, *lines: bytes, status: bytes = b"HTTP/1.1 200 OK", length: bytes | None = None) -> bytes:
    length = str(len(body)).encode() if length is None else length
    return b"\r\n".join((status, *lines, b"Content-Length: " + length, b"", b"")) + body


def _status_line(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    line = chance.choice(
        (
            b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/2 200",
            b"HTTP/9.9 200 OK", b"http/1.1 200 ok",
            b"HTTP/1.1  200  OK", b"HTTP/1.1\t200\tOK", b"HTTP/1.1 0 ", b"HTTP/1.1 099 ", b"HTTP/1.1 999 X",
            b"HTTP/1.1 1000 X", b"HTTP/1.1 -1 X",
            b"HTTP/1.1 2e2 X", b"HTTP/1.1 200.0 X", b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 X", b"HTTP/1.1 two",
            b"HTTP/1.1", b"HTTP/", b"", b"\xff\xfe", b"ICY 200 OK", b"SSH-2.0-OpenSSH_9",
            b"HTTP/1.1 200 " + b"A" * chance.choice((60_000, 65_600, _LONGEST)),
            b"HTTP/1.1 404 \x1b[2J\x1b]0;title\x07", b"HTTP/1.1 404 \x00\x08",
            b"HTTP/1.1 404 " + "找不到".encode(), b"HTTP/1.1 404 " + bytes(range(128, 256)),
            b"HTTP/1.1 500 line\rbreak", b"HTTP/1.1 204 No Content",
            b"HTTP/1.1 206 Partial Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 205 Reset",
            b"HTTP/1.1 407 Proxy", b"HTTP/1.1 418 " + b"tea " * 9000,
            b"HTTP/1.1 %d X" % chance.randrange(100, 600),
        )
    )  # fmt: skip
    return Answer("status line", (_whole(body, status=line),), chance.choice(("close", "keep")))


def _header_lines(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    lines = chance.choice(
        (
            lambda: [b"X-%d: y" % at for at in range(chance.choice((99, 101, 3000)))],
            lambda: [b"X: " + b"y" * chance.choice((60_000, 65_540, _LONGEST))],
            lambda: [b"no colon"],
            lambda: [b": no name"],
            lambda: [b" folded", b"\tmore"],
            lambda: [b"X: a\x00b", b"Y: \xff\xfe", b"\xc3\xa9: z"],
            lambda: [b"X: a\rY: b"],
            lambda: [b"X : space"],
            lambda: [b"Content-Type: " + b"image/png; " * 500],
            lambda: [b"ETag: " + chance.choice((b'"a', b"\xff", b"x" * 60_000, b"\x1b[31m", b'W/"\r')),
            b"Last-Modified: yesterday"],
            lambda: [b"Connection: " + chance.choice((b"close, keep-alive", b"upgrade", b"\xff"))],
            lambda: [b"Upgrade: h2c", b"Alt-Svc: h3=\":443\"", b"Strict-Transport-Security: max-age=x"],
            lambda: [b"Content-Disposition: attachment; filename*=UTF-8''%ff"],
            lambda: [b"Keep-Alive: timeout=nonsense, max=" + b"9" * 400],
        )
    )()  # fmt: skip
    return Answer("header lines", (_whole(body, *lines),), chance.choice(("close", "keep")))


def _lengths(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    length = chance.choice(
        (
            b"0", b"1", b"-1", b"abc", b"", b" ", b"1e3", b"0x10", b"+5", b"5, 5", b"5, 6", b"9" * 20, b"9" * 5000,
            b"99999999999", b"\xd9\xa3",
            str(len(body) - 1).encode(), str(len(body) + 1).encode(), str(len(body)).encode() + b" ", b"1_000",
            b"65000000", b"67108865",
        )
    )  # fmt: skip
    more = chance.choice(((), (b"Content-Length: 7",), (b"Transfer-Encoding: chunked",)))
    return Answer(
        "Content-Length",
        (_whole(body, *more, length=length),),
        chance.choice(("close", "close", "reset", "hold", "keep")),
    )


def _chunked(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    size = b"%x" % len(body)
    odd = chance.choice(
        (
            b"-1", b"", b" ", b"zz", b"0x10", b"g", size + b";" + b"a" * 70_000, size + b"; x=\"", b"f" * 17,
            b"f" * 5000, b"1_0", b"\xff",
            b"7fffffffffffffff", b"+" + size, size.upper(), size + b" ", b"00000000" + size, b"%x" % (len(body) + 9),
            b"1",
        )
    )  # fmt: skip
    tail = chance.choice(
        (
            b"\r\n0\r\n\r\n",
            b"\r\n",
            b"",
            b"\r\n0\r\n" + b"T: t\r\n" * 3000,
            b"\r\n0\r\n\r\n\r\ngarbage",
            b"\n0\n\n",
            b"0\r\n\r\n",
        )
    )
    encodings = (
        b"chunked",
        b"chunked",
        b"chunked",
        b"Chunked",
        b"chunked, chunked",
        b"gzip, chunked",
        b"identity",
        b"xchunked",
        b"",
    )
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + chance.choice(encodings) + b"\r\n\r\n"
    many = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    content = chance.choice((odd + b"\r\n" + body + tail, size + b"\r\n" + body + tail, many + tail[2:]))
    return Answer("chunks", (head + content,), chance.choice(("close", "close", "reset", "hold", "keep")))


def _encoded(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    encodings = (b"gzip", b"deflate", b"br", b"zstd", b"x-gzip", b"identity", b"compress", b"aws-chunked",
    b"gzip, gzip", b"gzip, deflate, gzip, gzip, gzip, gzip, gzip",
                 b"UTF-8", b"none", b"\xff", b"", b"gzip;q=1", b",,,", b"gzip" * 2000)  # fmt: skip
    packed = gzip.compress(body, mtime=0)
    content = chance.choice(
        (
            body,
            packed,
            packed[: len(packed) // 2],
            packed + packed,
            packed + b"garbage",
            gzip.compress(packed, mtime=0),
            zlib.compress(body),
            zlib.compress(body)[2:-4],
            packed[:8] + bytes((packed[8] ^ 255,)) + packed[9:],
            _bomb() if chance.random() < 0.05 else packed[:-4] + bytes(4),
            b"\x28\xb5\x2f\xfd" + chance.randbytes(60),
            b"",
        )
    )
    return Answer(
        "Content-Encoding",
        (_whole(content, b"Content-Encoding: " + chance.choice(encodings)),),
        chance.choice(("close", "keep")),
    )


@functools.cache
def _bomb() -> bytes:
    """More than a client may take, in 80 kB."""
    return gzip.compress(bytes(80_000_000), 9, mtime=0)


def _redirect(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    place = chance.choice(
        (
            b"", b"/", b"?", b"#", b"#a", b".", b"..", b"//", b"///", b"//127.0.0.1:1/", b"http:", b"http://",
            b"http:///a", b"http://[", b"http://[::1", b"http://[::1]:1/",
            b"http://127.0.0.1:1/", b"http://127.0.0.1:0/", b"http://127.0.0.1:65536/", b"http://127.0.0.1:-1/",
            b"http://127.0.0.1:x/", b"http://a..b/",
            b"http://127.0.0.1:1@127.0.0.1:1/", b"\\\\h\\s", b"file:///etc/passwd", b"FILE:///etc/passwd",
            b"ftp://127.0.0.1:1/", b"gopher://127.0.0.1:1/", b"data:image/png;base64,AAAA", b"javascript:alert(1)",
            b"s3://b/k", b"memory://a", b"simplecache::file:///etc/passwd", b"about:blank",
            b"/" + b"a" * 60_000, b"/%ff%00", "/图".encode(), b"/\xe9", b"/a b c", b"/\x00", b"/\x1b[2J",
            b"http://127.0.0.1:1/\tx", b"https://127.0.0.1:1/", b"http://0x7f000001:1/", b"http://2130706433:1/",
            address.encode() + b"/%d" % number, address.encode() + b"/%d" % (number + 1), b"/%d" % max(0, number - 1),
            b"%d" % number, address.encode() + b"/good%d" % number,
        )
    )  # fmt: skip
    status = chance.choice((b"301 M", b"302 F", b"303 S", b"307 T", b"308 P", b"300 C", b"399 X", b"201 C"))
    more = chance.choice(((), (b"Location: /other",), (b"Refresh: 0; url=/",), (b"Set-Cookie: a=b",)))
    head = _whole(body[: chance.choice((0, 10))], b"Location: " + place, *more, status=b"HTTP/1.1 " + status)
    return Answer("redirect", (head,), chance.choice(("close", "keep", "keep")))


def _cookies(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    cookie = chance.choice(
        (
            b"a=b", b"=", b"", b"a", b"a=" + b"b" * 60_000, b"a=b; Expires=never; Max-Age=" + b"9" * 400,
            b"a=b; Domain=.com", b"a=b; Path=" + b"/x" * 2000,
            b"\xff=\xfe", b"a=b\x00c", b"a=\"\\", b"; ; ;", b"a=b; Max-Age=-1e9",
            b"a=b, c=d; Secure; HttpOnly; SameSite=x", b"__Host-a=b; Expires=Mon, 01 Jan 99999999999 00:00:00 GMT",
        )
    )  # fmt: skip
    lines = [b"Set-Cookie: " + cookie] * chance.choice((1, 1, 80))
    if chance.random() < 0.6:  # on to itself, as a server does that wants its cookie back
        lines.append(b"Location: /%d" % number)
        return Answer("cookies", (_whole(b"", *lines, status=b"HTTP/1.1 302 Found"),), "keep")
    return Answer("cookies", (_whole(body, *lines),), "keep")


def _patience(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    after = chance.choice(
        (
            b"0", b"-1", b"1", b"3600", b"1e9", b"nan", b"inf", b"", b" ", b"9" * 20, b"9" * 5000, b"0.5", b"1,2",
            b"\xd9\xa3", b"Mon, 01 Jan 99999999999 00:00:00 GMT",
            b"Mon, 01 Jan 2026 00:00:00 +" + b"9" * 400, b"Mon, 01 Jan 1969 00:00:00 GMT",
            b"Mon, 99 Foo 2026 99:99:99 GMT", b"Mon, 01 Jan 0000 00:00:00 GMT", b"tomorrow", b"\xff\xfe",
            b"Fri, 31 Dec 9999 23:59:59 GMT", b"Mon, 01 Jan 2026 00:00:00 -9999", b"Mon, 01 Jan -5 00:00:00 GMT",
            b"Mon, 01 Jan 2026 " + b"0:" * 999, b"+5", b"1_0",
        )
    )  # fmt: skip
    status = chance.choice(
        (
            b"503 Busy",
            b"429 Slow down",
            b"413 Large",
            b"408 T",
            b"425 Early",
            b"500 X",
            b"502 X",
            b"504 X",
            b"403 No",
            b"200 OK",
            b"301 M",
        )
    )
    lines = [b"Retry-After: " + after] * chance.choice((1, 1, 1, 3))
    return Answer("Retry-After", (_whole(body, *lines, status=b"HTTP/1.1 " + status),), "keep")


def _informational(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    early = chance.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    b"HTTP/1.1 102 P\r\n\r\n", b"HTTP/1.1 199 X\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"))  # fmt: skip
    if chance.random() < 0.15:
        return Answer("informational flood", (early * 20_000,), "hold")
    return Answer(
        "informational", (early * chance.choice((1, 2, 1000)) + _whole(body),), chance.choice(("close", "keep"))
    )


def _cut(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    whole = _whole(body)
    at = chance.randrange(len(whole))
    drips: tuple[bytes | float, ...] = tuple(part for byte in whole[:40] for part in (bytes((byte,)), 0.05))
    parts: tuple[bytes | float, ...] = chance.choice(((b"",), (whole[:at],), (whole[:at],), (whole[:at], 0.01), drips))
    return Answer("cut", parts, chance.choice(("close", "close", "reset", "reset", "close", "hold")))


def _noise(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    whole = bytearray(_whole(body, b"Content-Type: image/png", b'ETag: "a"', b"Connection: keep-alive"))
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(min(len(whole), chance.choice((60, 140, len(whole)))))
        what = chance.randrange(3)
        if what == 0:
            whole[at] = chance.choice((0, 10, 13, 32, 58, 255, chance.randrange(256)))
        elif what == 1:
            del whole[at : at + chance.randrange(1, 9)]
        else:
            whole[at:at] = chance.choice((b"\r\n", b"\n", b"\r\n\r\n", chance.randbytes(5), b":" * 99))
    data = bytes(whole) if chance.random() < 0.85 else chance.randbytes(chance.choice((1, 300, 100_000)))
    return Answer("noise", (data,), chance.choice(("close", "close", "reset", "keep")))


def _dressed(chance: random.Random, body: bytes, address: str, number: int) -> Answer:
    """Whole answers that every client must read."""
    packed = gzip.compress(body, mtime=0)
    pieces = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (body[at : at + 50] for at in range(0, len(body), 50))
    )
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    name, parts, end = chance.choice(
        (
            ("plain", (_whole(body),), "keep"),
            ("closed", (_whole(body, b"Connection: close"),), "close"),
            ("without a length", (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,), "close"),
            ("HTTP/1.0", (b"HTTP/1.0 200 OK\r\n\r\n" + body,), "close"),
            ("chunked", (chunked + pieces + b"0\r\n\r\n",), "keep"),
            ("chunk extension and trailer", (chunked + b"%x;a=b\r\n%b\r\n0\r\nT: t\r\n\r\n" % (len(body), body),),
            "keep"),
            ("gzip", (_whole(packed, b"Content-Encoding: gzip"),), "keep"),
            ("deflate", (_whole(zlib.compress(body), b"Content-Encoding: deflate"),), "keep"),
            ("continue first", (b"HTTP/1.1 100 Continue\r\n\r\n" + _whole(body),), "keep"),
            ("by pieces", (_whole(body)[:30], 0.01, _whole(body)[30:90], 0.01, _whole(body)[90:]), "keep"),
            ("redirected", (_whole(b"", b"Location: /good%d" % number, status=b"HTTP/1.1 302 Found"),), "keep"),
        )
    )  # fmt: skip
    return Answer(f"whole: {name}", parts, end, image=body)


class _Server:
    def __init__(self, seed: int, n_answers: int) -> None:
        self._seed, self._n_answers = seed, n_answers
        self._answers: list[Answer] = []

    async def run(self) -> None:
        servers = [await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024) for _ in range(_N_PORTS)]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        self._answers = answers(self._seed, self._n_answers, f"http://127.0.0.1:{ports[0]}")
        print(*ports, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                answer = self._answer(head.split(b" ")[1].decode("latin-1"))
                for part in answer.parts:
                    if isinstance(part, float):
                        await asyncio.sleep(part)
                    else:
                        writer.write(part)
                        await writer.drain()
                if answer.end == "hold":
                    await asyncio.sleep(_SLOW_S)
                if answer.end == "reset":
                    # A close without lingering sends a reset: https://man7.org/linux/man-pages/man7/socket.7.html
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                if answer.end != "keep":
                    break
        writer.close()

    def _answer(self, path: str) -> Answer:
        name = path.lstrip("/").partition("?")[0].partition("#")[0]
        if name.startswith("good") and name[4:].isdecimal():
            return Answer("good", (_whole(image_of(int(name[4:]))),), "keep")
        if name.isdecimal() and int(name) < len(self._answers):
            return self._answers[int(name)]
        return Answer("missing", (_whole(b"", status=b"HTTP/1.1 404 Not Found"),), "keep")


@contextlib.contextmanager
def serve(seed: int, n_answers: int) -> Iterator[tuple[list[str], int]]:
    """Run the server in a process of its own; give its addresses and the process's id.

    Under ``/0``, ``/1`` … are the odd answers, under ``/good0`` … images without a fault.
    """
    command = [sys.executable, __file__, str(seed), str(n_answers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield [f"http://127.0.0.1:{port}" for port in process.stdout.readline().split()], process.pid
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_Server(int(sys.argv[1]), int(sys.argv[2])).run())
