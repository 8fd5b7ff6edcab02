"""Damage whole files: blindly, and by what each container's structure is."""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from helpers.malformed_inputs.seeds import ALLOWED, random_exif, seeds

_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 1000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_SIDES = (0, 1, 2, 17, 64, 4000, 9459, 12_000, 30_000, 65_535, 70_000, 2**24, 2**31 - 1, 2**32 - 1)
_CHUNKS = (
    b"zTXt",
    b"iTXt",
    b"tEXt",
    b"iCCP",
    b"tRNS",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"gAMA",
    b"cHRM",
    b"sPLT",
    b"PLTE",
)
_MARKERS = (
    0xC0,
    0xC1,
    0xC2,
    0xC4,
    0xC9,
    0xCC,
    0xD0,
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xDD,
    0xE0,
    0xE1,
    0xE2,
    0xED,
    0xEE,
    0xFE,
    0xFF,
)
_BOXES = (b"ftyp", b"meta", b"hdlr", b"pitm", b"iinf", b"infe", b"iloc", b"iprp", b"ipco", b"ispe", b"av1C", b"pixi",
          b"mdat", b"jP  ", b"jp2h", b"ihdr", b"colr", b"jp2c", b"irot", b"imir", b"grid")  # fmt: skip
_TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    338,
    339,
    347,
    34665,
)
_CONTAINERS = (b"meta", b"iprp", b"ipco", b"jp2h", b"moov", b"trak", b"dinf")


@dataclass(frozen=True)
class Damaged:
    """A damaged file: what it was, and its bytes."""

    seed: str
    data: bytes


def mutations(seed: int) -> Iterator[Damaged]:
    """Yield damaged files without end; equal seeds give equal files."""
    chance = random.Random(seed)
    wholes = list(seeds().values())
    allowed = [name for name in seeds() if name.split()[0] in ALLOWED]
    others = [name for name in seeds() if name.split()[0] not in ALLOWED]
    while True:
        name = chance.choice(allowed if chance.random() < 0.8 else others)
        yield Damaged(name, mutated(chance, seeds()[name], chance.choice(wholes)))


def mutated(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Return `data` with one to six damages, some of them taken from `other`."""
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        if not damaged:
            break
        knowing = _knowing(damaged)
        if knowing is not None and chance.random() < 0.5:
            try:
                damaged = bytearray(knowing(chance, bytes(damaged)))
                continue
            except (struct.error, IndexError, ValueError, OverflowError):
                pass  # damaged beyond its own structure already
        damaged = _blind(chance, damaged, other)
    return bytes(damaged)


def _blind(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    at = chance.randrange(len(data))
    # Headers decide most of what a reader does.
    if chance.random() < 0.4:
        at = min(at, chance.randrange(64))
    kind = chance.randrange(10)
    if kind <= 1:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
    elif kind <= 4:
        n_bytes, order = chance.choice((2, 4, 4)), chance.choice(("little", "big"))
        number = chance.choice((*_NUMBERS, chance.randrange(1 << 32))) % (1 << 8 * n_bytes)
        data[at : at + n_bytes] = number.to_bytes(n_bytes, order)
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        del data[at : at + chance.choice((1, 2, 4, chance.randrange(1, 60)))]
    elif kind == 7:
        part = data[at : at + chance.randrange(1, 200)]
        data[at:at] = part * chance.choice((1, 1, 2, 50))
    elif kind == 8:
        start = chance.randrange(len(other))
        data[at : at + chance.choice((0, 30))] = other[start : start + chance.randrange(1, 300)]
    else:
        for _ in range(chance.randrange(4, 40)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return data


def _knowing(data: bytearray) -> Callable[[random.Random, bytes], bytes] | None:
    if data.startswith(b"\x89PNG"):
        return _png
    if data.startswith(b"\xff\xd8"):
        return _jpeg
    if data.startswith((b"II", b"MM")):
        return _tiff
    if data[4:8] in (b"ftyp", b"jP  "):
        return _boxes
    if data.startswith(b"RIFF"):
        return _riff
    if data.startswith(
        (b"BM", b"GIF8", b"\x00\x00\x01\x00", b"\x00\x00\x02\x00", b"DDS ", b"BLP", b"8BPS", b"\xff\x4f\xff\x51")
    ):
        return functools.partial(_fields, little=data[:1] in b"BGD\x00")
    return None


def _png(chance: random.Random, data: bytes) -> bytes:
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = chance.randrange(len(chunks))
    kind, body = chunks[place]
    what = chance.randrange(7)
    claimed: int | None = None
    if what == 0:  # the header's size, depth and colour
        header = bytearray(chunks[0][1].ljust(13, b"\x00"))
        header[0:8] = struct.pack(">II", *_size(chance))
        if chance.random() < 0.5:
            header[8:13] = bytes(chance.choice((0, 1, 2, 3, 4, 6, 8, 16, 200)) for _ in range(5))
        chunks[0] = (chunks[0][0], bytes(header))
    elif what == 1 and body:
        changed = bytearray(body)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        chunks[place] = (kind, bytes(changed))
    elif what == 2:
        claimed = chance.choice(_NUMBERS)
    elif what == 3:
        del chunks[place]
    elif what == 4:
        chunks[place:place] = [chunks[place]] * chance.choice((1, 2, 300))
    elif what == 5:
        name = chance.choice(_CHUNKS)
        made = random_exif(chance) if name == b"eXIf" else chance.randbytes(chance.randrange(60))
        if name in (b"zTXt", b"iCCP"):
            made = b"a\x00\x00" + zlib.compress(bytes(chance.choice((9, 2_000_000))), 1)
        chunks.insert(chance.randrange(1, len(chunks) + 1), (name, made))
    else:  # other pixels, well compressed
        chunks[place] = (b"IDAT", zlib.compress(chance.randbytes(20) * chance.choice((1, 100, 5000)), 1))
    parts = [data[:8]]
    for number, (name, content) in enumerate(chunks):
        length = claimed if number == place and claimed is not None else len(content)
        parts.append(length.to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4))
    return b"".join(parts)


def _jpeg(chance: random.Random, data: bytes) -> bytes:
    segments: list[tuple[int, bytes]] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + max(2, length)
    rest = data[at:]
    place = chance.randrange(len(segments))
    marker, body = segments[place]
    what = chance.randrange(8)
    lie = 0
    if what == 0:  # size, sampling and number of components of the frame
        place = next((n for n, (name, _) in enumerate(segments) if name in (0xC0, 0xC1, 0xC2)), place)
        frame = bytearray(segments[place][1].ljust(15, b"\x00"))
        height, width = _size(chance)
        frame[1:5] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        if chance.random() < 0.5:
            frame[chance.randrange(len(frame))] = chance.choice((0, 1, 2, 4, 8, 12, 16, 0x11, 0x22, 0x44, 255))
        segments[place] = (segments[place][0], bytes(frame))
    elif what == 1 and body:
        changed = bytearray(body)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        segments[place] = (marker, bytes(changed))
    elif what == 2:
        lie = chance.choice((-2, -1, 1, 2, 100, 60_000))
    elif what == 3:
        del segments[place]
    elif what == 4:
        segments[place:place] = [segments[place]] * chance.choice((1, 2, 200))
    elif what == 5:
        segments.insert(0, (0xE1, b"Exif\x00\x00" + random_exif(chance)))
    elif what == 6:
        segments[place] = (chance.choice(_MARKERS), body)
    elif chance.random() < 0.5:  # scans without end
        scan = rest[: 2 + struct.unpack_from(">H", rest, 2)[0]]
        return data + scan * chance.choice((1, 50, 2000))
    else:
        cut = chance.randrange(len(rest) + 1)
        rest = rest[:cut] + bytes((0xFF, chance.choice(_MARKERS))) + rest[cut:]
    parts = [b"\xff\xd8"]
    for number, (name, content) in enumerate(segments):
        length = max(0, min(0xFFFF, len(content) + 2 + (lie if number == place else 0)))
        parts.append(bytes((0xFF, name)) + length.to_bytes(2) + content)
    return b"".join(parts) + rest


def _tiff(chance: random.Random, data: bytes) -> bytes:
    order = "<" if data.startswith(b"II") else ">"
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (n_entries,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, at)
    first, size = at + (8 if is_big else 2), 20 if is_big else 12
    entry = first + size * chance.randrange(max(1, min(n_entries, 200)))
    changed = bytearray(data)
    what = chance.randrange(7)
    if what == 0:
        struct.pack_into(order + "H", changed, entry, chance.choice((*_TAGS, chance.randrange(65536))))
    elif what == 1:
        struct.pack_into(order + "H", changed, entry + 2, chance.choice((*range(19), chance.randrange(65536))))
    elif what == 2:
        struct.pack_into(order + "I", changed, entry + 4, chance.choice(_NUMBERS))
    elif what == 3:
        struct.pack_into(order + "I", changed, entry + 8, chance.choice((*_NUMBERS, chance.randrange(len(data)))))
    elif what == 4:  # the directory's length, and where the next one lies
        struct.pack_into(order + "H", changed, at, chance.choice((0, 1, n_entries & 0xFFFF, 5000, 0xFFFF)))
    elif what == 5:
        struct.pack_into(order + "I", changed, first + size * n_entries, chance.choice((0, at, 4, *_NUMBERS)))
    else:  # width or height, by their tags
        for number in range(min(n_entries, 200)):
            place = first + size * number
            if (
                struct.unpack_from(order + "H", changed, place)[0] in (256, 257, 278, 322, 323)
                and chance.random() < 0.6
            ):
                struct.pack_into(order + "HII", changed, place + 2, 4, 1, chance.choice(_SIDES))
    return bytes(changed)


def _boxes(chance: random.Random, data: bytes) -> bytes:
    found = list(_walk(data, 0, len(data), 0))
    at, header, end = found[chance.randrange(len(found))]
    changed = bytearray(data)
    what = chance.randrange(7)
    if what == 0:
        struct.pack_into(">I", changed, at, chance.choice((*_NUMBERS, end - at + chance.choice((-8, -1, 1, 8)))))
    elif what == 1:
        changed[at + 4 : at + 8] = chance.choice(_BOXES)
    elif what == 2:
        del changed[at:end]
    elif what == 3:
        changed[at:at] = changed[at:end] * chance.choice((1, 2, 30))
    elif what == 4 and end - at > header:
        place = at + header + chance.randrange(end - at - header)
        changed[place : place + 4] = struct.pack(">I", chance.choice((*_NUMBERS, chance.randrange(2000))))[
            : end - place
        ]
    elif what == 5:  # sizes, wherever a box tells them
        name, skip = chance.choice(((b"ispe", 8), (b"ihdr", 4), (b"\xff\x51", 6)))
        if (place := data.find(name)) >= 0:
            struct.pack_into(">II", changed, place + skip, *_size(chance))
    else:
        for _ in range(chance.randrange(1, 40)):
            changed[chance.randrange(at, end)] = chance.randrange(256)
    return bytes(changed)


def _walk(data: bytes, at: int, end: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """Where boxes lie, how long their headers are, and where they end."""
    while at + 8 <= end:
        (length,) = struct.unpack_from(">I", data, at)
        stop = end if length < 8 else min(end, at + length)
        name = data[at + 4 : at + 8]
        yield at, 8, stop
        if name in _CONTAINERS and depth < 6:
            yield from _walk(data, at + (12 if name == b"meta" else 8), stop, depth + 1)
        at = stop


def _riff(chance: random.Random, data: bytes) -> bytes:
    chunks: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    place = chance.randrange(len(chunks))
    kind, body = chunks[place]
    what = chance.randrange(7)
    lies: dict[int, int] = {}
    if what == 0 and body:
        changed = bytearray(body)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        chunks[place] = (kind, bytes(changed))
    elif what == 1:
        lies[place] = chance.choice(_NUMBERS)
    elif what == 2:
        del chunks[place]
    elif what == 3:
        chunks[place:place] = [chunks[place]] * chance.choice((1, 2, 30))
    elif what == 4:
        chunks.append((b"EXIF", random_exif(chance)))
        if chunks[0][0] != b"VP8X":
            chunks.insert(0, (b"VP8X", b"\x08\x00\x00\x00" + (23).to_bytes(3, "little") + (16).to_bytes(3, "little")))
    elif what == 5:
        kinds = (b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"EXIF", b"XMP ")
        chunks[place] = (chance.choice(kinds), body)
    else:  # the canvas, and the frame's own size
        height, width = (max(1, side) for side in _size(chance))
        canvas = b"".join(((side - 1) & 0xFFFFFF).to_bytes(3, "little") for side in (width, height))
        if chunks[0][0] == b"VP8X":
            chunks[0] = (b"VP8X", chunks[0][1][:4] + canvas)
        for number, (name, content) in enumerate(chunks):
            if name == b"VP8L" and len(content) > 5:
                bits = ((width - 1) & 0x3FFF) | ((height - 1) & 0x3FFF) << 14
                chunks[number] = (name, content[:1] + struct.pack("<I", bits) + content[5:])
            elif name == b"VP8 " and len(content) > 10:
                chunks[number] = (
                    name,
                    content[:6] + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + content[10:],
                )
    parts = []
    for number, (name, content) in enumerate(chunks):
        parts.append(name + struct.pack("<I", lies.get(number, len(content))) + content + bytes(len(content) % 2))
    whole = b"".join(parts)
    return b"RIFF" + struct.pack("<I", chance.choice((len(whole) + 4,) * 8 + _NUMBERS[:4])) + data[8:12] + whole


def _fields(chance: random.Random, data: bytes, *, little: bool) -> bytes:
    """Change a number of a header whose fields lie at even places."""
    changed = bytearray(data)
    place = 2 * chance.randrange(2, max(3, min(70, len(data) // 2)))
    n_bytes = chance.choice((2, 4))
    number = chance.choice((*_NUMBERS, *_SIDES)) % (1 << 8 * n_bytes)
    changed[place : place + n_bytes] = number.to_bytes(n_bytes, "little" if little else "big")
    return bytes(changed)


def _size(chance: random.Random) -> tuple[int, int]:
    """A height and a width, often such that both are large and their product just allowed."""
    if chance.random() < 0.3:
        return chance.choice(((9459, 9459), (4000, 22_000), (300, 65_000), (12_000, 7000), (3000, 4000)))
    return chance.choice(_SIDES), chance.choice(_SIDES)
