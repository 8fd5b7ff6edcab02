"""A corpus of everything that stands in picture columns and is no plain picture, with what must become of it."""

from __future__ import annotations

import base64
import io
import random
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

OK, NULL = "ok", "null_image"


@dataclass(frozen=True)
class Case:
    """A cell, and what may become of it: ``ok``, ``null_image``, or the stage of its error."""

    name: str
    cell: Any
    outcomes: tuple[str, ...]


def corpus() -> list[Case]:
    """Every kind of rubbish once, truncations at 64 points and bit flips included."""
    return [*_forms(), *_truncations(), *_flips(), *_bombs(), *_texts()]


def bad_kinds(number: int) -> list[Case]:
    """Twelve kinds of bad cells, different from call to call by `number`."""
    tag = number.to_bytes(4)
    jpeg = encoded(noise(40, 40, number), "JPEG")
    return [
        Case("truncated JPEG", jpeg[: len(jpeg) // 2] + tag, ("decode",)),
        Case("half a PNG", encoded(noise(40, 40, number), "PNG")[:200] + tag, ("decode",)),
        Case("HTML", b"<!doctype html>" + tag, ("decode",)),
        Case("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'>" + tag, ("decode",)),
        Case("zip", _zip(tag), ("decode",)),
        Case("zeros", bytes(50) + tag, ("decode",)),
        Case("missing file", f"missing-{number}.png", ("fetch",)),
        Case("unknown scheme", f"gopher://example.org/{number}", ("fetch",)),
        Case("broken base64", f"data:image/png;base64,*{number}*", ("fetch",)),
        Case("number", number + 0.5, ("fetch",)),
        Case("channels first", np.full((3, 40 + number % 7, 50), number % 256, np.uint8), ("decode",)),
        Case("needle", np.full((6000, 20, 3), number % 256, np.uint8)[: 5000 + number % 900], ("resize",)),
    ]


def mutations(seed: int) -> Iterator[Any]:
    """Endless damaged cells: bytes with flips, cuts and splices, and texts that look like addresses or base64."""
    chance = random.Random(seed)
    whole = [encoded(noise(24, 18, 0), form) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")]
    starts = ("", "data:image/png;base64,", "http://[", "file://", "s3://", "/", "~", "\x00", "//", "data:,", "C:\\")
    while True:
        if chance.random() < 0.75:
            yield _mutated(chance, chance.choice(whole), chance.choice(whole))
        else:
            letters = "".join(
                chr(chance.choice((chance.randrange(128), chance.randrange(0xD7FF))))
                for _ in range(chance.randrange(40))
            )
            yield chance.choice(starts) + letters


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture that does not compress to nothing."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def jpeg_of_scans(n_scans: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose scans are short, hold nothing, and cost time all the same."""
    whole = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:at] + whole[at:-2] * n_scans + whole[-2:]


def _forms() -> Iterator[Case]:
    picture = noise(60, 40, 0)
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB", "I;16", "F", "RGBA", "LA"):
        form = "PNG" if mode in ("1", "L", "P", "RGBA", "LA", "I;16") else "TIFF"
        changed = Image.fromarray(np.zeros((40, 60), np.uint16)) if mode == "I;16" else picture.convert(mode)
        yield Case(f"mode {mode}", encoded(changed, form), (OK,))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case(f"EXIF {orientation}", encoded(picture, "JPEG", exif=exif), (OK,))
    frames = [noise(30, 30, number) for number in range(4)]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        yield Case(f"animated {form}", encoded(frames[0], form, save_all=True, append_images=frames[1:]), (OK,))
    for width, height in ((1, 1), (1, 200), (30_000, 1), (1, 30_000), (2, 30_000), (151, 30_000)):
        outcome = OK if max(width, height) / min(width, height) <= 200 else "resize"
        yield Case(f"{width}×{height}", encoded(Image.new("RGB", (width, height)), "PNG"), (outcome,))
    yield Case("PNG named JPEG", encoded(picture, "PNG"), (OK,))


def _truncations() -> Iterator[Case]:
    for form in ("JPEG", "PNG"):
        whole = encoded(noise(64, 64, 1), form)
        for part in range(64):
            cut = whole[: len(whole) * part // 64]
            # a JPEG that lacks only its last bytes is whole to some readers
            yield Case(f"{form} cut at {part}/64", cut, ("decode", OK) if cut else (NULL,))


def _flips() -> Iterator[Case]:
    chance = random.Random(0)
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        whole = encoded(noise(64, 64, 2), form)
        for number in range(40):
            data = bytearray(whole)
            for _ in range(1 + number % 5):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            yield Case(f"{form} flipped {number}", bytes(data), (OK, "decode", "resize"))


def _bombs() -> Iterator[Case]:
    yield Case("pixel bomb", _claims(100_000, 100_000), ("decode",))
    yield Case("tall bomb", _claims(1, 2**31 - 1), ("decode",))
    yield Case("zip bomb", _zip(bytes(10_000_000)), ("decode",))
    text = b"x" * 50_000_000
    yield Case("text chunk bomb", _png(60, 40, [(b"zTXt", b"a\x00\x00" + zlib.compress(text))]), ("decode", OK))


def _texts() -> Iterator[Case]:
    for name, data in {
        "empty": b"",
        "HTML": b"<html></html>",
        "SVG": b"<svg/>",
        "PDF": b"%PDF-1.7",
        "JSON": b"{}",
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
    }.items():
        yield Case(name, data, (NULL,) if not data else ("decode",))
    good = base64.b64encode(encoded(noise(30, 30, 3), "PNG")).decode()
    yield Case("base64", good, (OK,))
    yield Case("base64 cut", f"data:image/png;base64,{good[: len(good) // 2]}", ("decode", "fetch"))
    for name, text in {
        "NUL": "a\x00b.png",
        "long name": "a" * 300,
        "very long name": "b/" * 3000,
        "folder": ".",
        "surrogate": "\ud800.png",
        "percent": "file:///%00",
        "no host": "http://",
        "bad port": "http://127.0.0.1:x/",
    }.items():
        yield Case(f"text: {name}", text, ("fetch", "decode"))


def _claims(width: int, height: int) -> bytes:
    """A small PNG whose header claims to be huge."""
    return _png(width, height, [])


def _png(width: int, height: int, more: list[tuple[bytes, bytes]]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\x00\x00\x00"
    rows = zlib.compress((b"\x00" + bytes(3 * 60)) * 40)
    chunks = [(b"IHDR", header), *more, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def _zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", data)
    return buffer.getvalue()


def _mutated(chance: random.Random, data: bytes, other: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        kind = chance.randrange(4)
        at = chance.randrange(len(damaged))
        if kind == 0:
            damaged[at] = chance.randrange(256)
        elif kind == 1:
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 2 and len(damaged) > 40:
            del damaged[at : at + chance.randrange(1, 30)]
        else:
            start = chance.randrange(len(other))
            damaged[at:at] = other[start : start + chance.randrange(1, 30)]
    return bytes(damaged[: chance.randrange(1, len(damaged) + 1)]) if chance.random() < 0.3 else bytes(damaged)
