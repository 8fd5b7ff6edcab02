"""Odd cells: what stands in columns of objects and is no plain image, and objects whose own code fails."""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import random
import re
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from helpers.malformed_inputs.mutations import mutated
from helpers.malformed_inputs.seeds import seeds, small
from PIL import Image


class OddError(Exception):
    """An exception of nobody's hierarchy, which cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("its message cannot be made")

    __repr__ = __str__


FAULTS: tuple[Callable[[], Exception], ...] = (
    lambda: OSError("Can't synchronously read data (inflate() failed)"),
    lambda: OSError(24, "Too many open files"),
    MemoryError,
    lambda: RuntimeError("can't start new thread"),
    lambda: KeyError("c/0/0"),
    lambda: AttributeError("the data set is closed"),
    lambda: ValueError("no such chunk"),
    lambda: TypeError("not this type"),
    NotImplementedError,
    AssertionError,
    lambda: OverflowError("int too large"),
    lambda: RecursionError("too deep"),
    StopIteration,
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ZeroDivisionError,
    lambda: ImportError("no such codec"),
    lambda: TimeoutError("the mount is gone"),
    EOFError,
    BufferError,
    lambda: ExceptionGroup("several", [ValueError("one")]),
    OddError,
)
"""Makers of what the code of a cell or of a library may raise."""

_HOOKS = (
    "__array__", "__array_interface__", "__array_struct__", "__buffer__", "__fspath__", "__len__", "__iter__",
    "__getitem__",
    "__eq__", "__bool__", "__float__", "__int__", "__index__", "__str__", "__repr__", "__hash__", "__class__",
    "__getattr__", "__contains__", "__dlpack__", "__arrow_array__", "__length_hint__", "__bytes__",
)  # fmt: skip


def cells(seed: int) -> Iterator[tuple[str, object]]:
    """Yield odd cells and their names without end; equal seeds give equal cells."""
    chance = random.Random(seed)
    makers = (
        _text,
        _text,
        _text,
        _data,
        _data,
        _plain,
        _sequence,
        _mapping,
        _array,
        _array,
        _tabular,
        _image,
        _image,
        _lazy,
        _lazy,
        _liar,
    )
    while True:
        maker = chance.choice(makers)
        yield maker.__name__.strip("_"), maker(chance)


def _text(chance: random.Random) -> str:
    whole = chance.choice(list(seeds().values()))
    good = base64.b64encode(whole if chance.random() < 0.5 else mutated(chance, whole, whole)).decode()
    start = chance.choice(
        (
            "", "", "data:", "data:image/png;base64,", "DATA:;base64,", "data:;charset=utf-8,",
            "data:image/svg+xml,%3Csvg", "data:,",
            "file:", "file://", "file:///", "file://elsewhere/", "FILE:///dev/", "//", "/", "~", "~nobody/", "C:\\",
            "\\\\host\\share\\",
            "gopher://127.0.0.1:1/", "ftp://127.0.0.1:1/", "jar:file:///a!/", "view-source:", "javascript:",
            "memory://", "local://", "simplecache::file://",
            "zip://a::file:///", "filecache::", "::", "reference://", "blockcache::memory://", "dir::/", "cached::",
            "s3a::", "git://127.0.0.1:1/", "http:", "http://127.0.0.1:1?",
            "http:///", "http://[", "http://[::", "http://127.0.0.1:1/", "http://127.0.0.1:99999/",
            "http://user:pw@127.0.0.1:1/",
            "https://127.0.0.1:1/", "HTTP://127.0.0.1:1/", "http://127.1:1/", "http://0:1/",
            "http://127.0.0.1:1@127.0.0.1:1/",
            "\x00", "\ud800", "\u202e", "\ufeff", "\u2028", " \t\n", "<svg ", "<!doctype html>", "%", "{", "[",
            "None", "nan",
        )
    )  # fmt: skip
    middle = chance.choice(
        (
            lambda: "".join(chr(chance.choice((chance.randrange(128),
            chance.randrange(0x11000)))) for _ in range(chance.randrange(30))),
            lambda: good,
            lambda: good.replace("+", "-").replace("/", "_").rstrip("="),
            lambda: good[: chance.randrange(len(good) + 1)],
            lambda: "\n".join(good[at : at + 60] for at in range(0, len(good), 60)),
            lambda: "".join(chance.choice((letter, letter, letter, " ", "*", "=")) for letter in good[:200]),
            lambda: base64.b64encode(good.encode()).decode(),
            lambda: "a" * chance.choice((1, 255, 256, 4096, 4097, 200_000)),
            lambda: "../" * chance.choice((1, 40, 3000)) + "a.png",
            lambda: "a.png" + chance.choice(("\x00", "?", "#", "%00", "%", "%zz", "\n", "\r\nX: y", "\ud83d", "é",
            "?a=" + "b" * 9000)),
            lambda: chance.choice(("proc/self/mem", "/proc/kmsg", "dev/zero", "dev/null", "dev/stdin", "etc", ".",
            "..", "tmp/", "sys/kernel")),
            lambda: "",
        )
    )()  # fmt: skip
    return start + middle


def _data(chance: random.Random) -> object:
    whole = chance.choice(list(seeds().values()))
    data = chance.choice(
        (
            b"",
            b"\x00",
            chance.randbytes(chance.randrange(1, 300)),
            mutated(chance, whole, whole),
            base64.b64encode(whole),
            b"data:image/png;base64," + base64.b64encode(whole),
            b"http://127.0.0.1:1/a.png",
            whole[: chance.randrange(1, 40)],
            bytes(100_000),
        )
    )
    dress: tuple[Callable[[bytes], object], ...] = (
        bytes,
        bytearray,
        memoryview,
        lambda data: memoryview(data)[::2],
        lambda data: memoryview(data * 4).cast("I") if data else memoryview(data),
        lambda data: memoryview(np.frombuffer(data * 6, np.uint8).reshape(-1, 3)),
        _released,
        type("Bytes", (bytes,), {}),
        io.BytesIO,
        lambda data: np.frombuffer(data, np.uint8),
        lambda data: np.array(data, dtype=object),
        lambda data: np.void(data) if data else np.void(b"a"),
        lambda data: np.bytes_(data),
    )
    return chance.choice(dress)(data)


def _released(data: bytes) -> memoryview:
    view = memoryview(data)
    view.release()
    return view


def _plain(chance: random.Random) -> object:
    colours = enum.Enum("colours", "RED GREEN")
    values: tuple[object, ...] = (
        None, pd.NA, pd.NaT, float("nan"), float("inf"), 0, -1, 2**70, 1.5, True, 1j, ..., NotImplemented, object(),
        object, int,
        np.nan, np.float32("nan"), np.datetime64("NaT"), np.timedelta64(1, "s"), np.int8(1), np.float16(1),
        np.bool_(True),
        np.str_("a.png"), np.bytes_(b"a"), np.complex64(1), np.void(b"abc"), np.datetime64("2026-01-01"),
        np.longdouble(1),
        decimal.Decimal("NaN"), decimal.Decimal(1), fractions.Fraction(1, 3), datetime.datetime(2026, 1, 1),
        datetime.timedelta(1),
        uuid.UUID(int=1), range(3), range(0), slice(1), iter([1]), (n for n in range(3)), map(str, [1]), zip(),
        enumerate([1]),
        set(), {1}, frozenset({b"a"}), collections.deque([1]), collections.Counter("a"), colours.RED, colours,
        lambda: 1, print,
        types.SimpleNamespace(path="a.png"), types.ModuleType("m"), pathlib.Path("a.png"), pathlib.Path("/"),
        pathlib.PurePosixPath("\x00"),
        Exception("a"), KeyboardInterrupt, re.match("a", "a"), open, io.StringIO("a"), np, pd, np.dtype("uint8"),
        np.random.default_rng(0),
    )  # fmt: skip
    return chance.choice(values)


def _sequence(chance: random.Random) -> object:
    good = seeds()["PNG RGB"]
    parts = [chance.choice((good, "a.png", None, b"", [], [good], (), 1, np.zeros((9, 9, 3), np.uint8),
    {"bytes": good}, float("nan"), _liar(chance)))
             for _ in range(chance.randrange(5))]  # fmt: skip
    nested: object = good
    for _ in range(chance.choice((1, 5, 3000))):
        nested = [nested]
    loop: list[object] = [good]
    loop.append(loop)
    dresses: tuple[Callable[[], object], ...] = (
        lambda: parts,
        lambda: tuple(parts),
        lambda: collections.deque(parts),
        lambda: iter(parts),
        lambda: type("Names", (tuple,), {"_fields": ()})(parts),
        lambda: type("Broken", (list,), {"__iter__": _raiser(chance), "__len__": lambda self: 3})(parts),
        lambda: type("Long", (list,), {"__len__": lambda self: 2**62})(parts),
        lambda: type("Negative", (tuple,), {"__len__": lambda self: -1})(parts),
        lambda: nested,
        lambda: loop,
        lambda: [good] * chance.choice((1, 2, 500)),
        lambda: [[[]]],
        lambda: _objects(parts),
        lambda: _objects([[part] for part in parts]).reshape(-1, 1),
        lambda: np.array(["a.png", "b.png"]),
        lambda: np.array([b"a", good]),
        lambda: np.array([good, "a.png"], dtype=object)[::-1],
        lambda: np.empty((0,), dtype=object),
        lambda: np.empty((2, 2), dtype=object),
    )
    return chance.choice(dresses)()


def _objects(parts: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(parts), dtype=object)
    for number, part in enumerate(parts):
        array[number] = part
    return array


def _mapping(chance: random.Random) -> object:
    good = seeds()["PNG RGB"]
    value = chance.choice(
        (good, None, "", b"", 1, [good], {"bytes": good}, "a.png", float("nan"), bytearray(good), _liar(chance))
    )
    key = chance.choice(("bytes", "path", "url", "image_url", "Bytes", b"bytes", 0, None, "array", "image"))
    dresses: tuple[Callable[[], object], ...] = (
        dict,
        lambda: {key: value},
        lambda: {"bytes": None, "path": value},
        lambda: {"bytes": value, "path": "missing.png"},
        lambda: collections.OrderedDict({key: value}),
        lambda: types.MappingProxyType({key: value}),
        lambda: collections.ChainMap({key: value}),
        lambda: collections.defaultdict(lambda: value),
        lambda: type("Broken", (dict,), {"__getitem__": _raiser(chance)})({"bytes": good}),
        lambda: type("Unsure", (dict,), {"__contains__": _raiser(chance)})({"bytes": good}),
        lambda: type("Yes", (dict,), {"__contains__": lambda self, name: True})({}),
        lambda: {"type": "image_url", "image_url": {"url": "data:,"}},
    )
    return chance.choice(dresses)()


def _array(chance: random.Random) -> object:
    shapes = ((), (0,), (3,), (9, 9), (9, 9, 1), (9, 9, 2), (9, 9, 3), (9, 9, 4), (9, 9, 5), (3, 9, 9), (1, 9, 9, 3),
    (2, 9, 9, 3),
              (0, 9, 3), (9, 0, 3), (1, 1, 3), (1, 300, 3), (300, 1), (9, 9, 3, 1, 1), (1,) * 20)  # fmt: skip
    kinds = ("u1", "i1", "u2", ">u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", ">f4", "f8", "g", "c8", "c16", "?",
    "M8[s]", "m8[ns]",
             "S3", "U3", "V5", "O", [("r", "u1"), ("g", "u1")])  # fmt: skip
    kind = np.dtype(chance.choice(kinds))
    try:
        array = np.zeros(chance.choice(shapes), kind)
        if kind.kind in "iufc" and array.size:
            array.flat[0] = chance.choice((0, 1, 100, -1 if kind.kind != "u" else 255))
        if kind.kind in "fc" and array.size:
            array.flat[-1] = chance.choice((0.0, 0.5, 1.0, 1.5, -0.1, np.nan, np.inf, 300))
    except (TypeError, ValueError, OverflowError):
        array = np.zeros((9, 9, 3), np.uint8)
    dresses: tuple[Callable[[], object], ...] = (
        lambda: array,
        lambda: array,
        lambda: array[::-1] if array.ndim else array,
        lambda: array.T,
        lambda: np.asfortranarray(array),
        lambda: np.broadcast_to(np.uint8(7), (30_000, 30_000, 3)),  # 2.7 GB, were it made whole
        lambda: np.broadcast_to(np.uint8(7), (2**31, 3)),
        lambda: np.lib.stride_tricks.as_strided(np.zeros(300, np.uint8), (9, 9, 3), (1, 1, 1)),
        lambda: np.ma.masked_array(np.zeros((9, 9, 3), np.uint8), mask=True),
        lambda: array.view(np.recarray),
        lambda: array.flat,
        lambda: array.tolist(),
        lambda: memoryview(array) if kind.kind in "uif" and array.flags.c_contiguous else array,
        lambda: array.dtype.type(0) if kind.kind in "uif" else array,
        lambda: np.array(array.tolist(), dtype=object) if array.size < 50 else array,
    )
    try:
        return chance.choice(dresses)()
    except (TypeError, ValueError):
        return array


def _tabular(chance: random.Random) -> object:
    good = seeds()["PNG RGB"]
    dresses: list[Callable[[], object]] = [
        lambda: pd.Series([good]),
        lambda: pd.Series(["a.png", "b.png"]),
        lambda: pd.Series([], dtype=object),
        lambda: pd.Index([1, 2]),
        lambda: pd.MultiIndex.from_tuples([(1, 2)]),
        lambda: pd.DataFrame({"bytes": [good]}),
        lambda: pd.DataFrame(),
        lambda: pd.Categorical(["a.png"]),
        lambda: pd.array([1, None], dtype="Int64"),
        lambda: pd.array(["a.png", None], dtype="string"),
        lambda: pd.Timestamp("2026-01-01", tz="UTC"),
        lambda: pd.Interval(0, 1),
        lambda: pd.Period("2026"),
        lambda: pd.arrays.SparseArray([0, 1]),
    ]
    try:
        import pyarrow as pa
    except ImportError:
        pass
    else:
        dresses += [
            lambda: pa.scalar(good),
            lambda: pa.scalar(None),
            lambda: pa.scalar("a.png"),
            lambda: pa.array([good, None]),
            lambda: pa.chunked_array([["a.png"]]),
            lambda: pa.scalar({"bytes": good, "path": None}),
            lambda: pa.scalar([1, 2]),
            lambda: pa.table({"a": [1]}),
            lambda: pa.py_buffer(good),
            lambda: pa.array([], pa.null()),
        ]
    return chance.choice(dresses)()


def _image(chance: random.Random) -> object:
    modes = (
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "LA",
        "PA",
        "RGBX",
        "RGBa",
        "La",
        "I;16",
        "I;16B",
        "I;16L",
        "BGR;15",
    )
    name = chance.choice(list(seeds()))
    dresses: tuple[Callable[[], object], ...] = (
        lambda: Image.new(chance.choice(modes), (chance.choice((0, 1, 9, 300)), chance.choice((0, 1, 9)))),
        lambda: Image.new(chance.choice(modes[:12]), (9, 9), chance.choice((0, 1, -1, 300, "red"))),
        lambda: Image.open(io.BytesIO(seeds()[name])),
        lambda: _closed(Image.open(io.BytesIO(seeds()[name]))),
        lambda: _closed(small()),
        lambda: Image.open(io.BytesIO(seeds()[name][: chance.randrange(1, len(seeds()[name]))])),
        lambda: Image.open(io.BytesIO(mutated(chance, seeds()[name], seeds()[name]))),
        lambda: _on_closed_file(seeds()[name]),
        lambda: Image.open(_Drip(seeds()[name], chance)),
        lambda: Image.fromarray(np.full((9, 9), np.nan, np.float32)),
        lambda: Image.fromarray(np.full((9, 9), 70_000, np.int32)),
        lambda: _with_info(chance),
        lambda: type("Claims", (Image.Image,), {"size": (9, 9), "width": 9, "height": 9, "mode": "RGB"})(),
        lambda: type("Broken", (Image.Image,), {"load": _raiser(chance), "size": (9, 9), "mode": "RGB"})(),
    )  # fmt: skip
    try:
        return chance.choice(dresses)()
    except Exception:  # noqa: BLE001  # Pillow refuses some of these at once
        return small()


def _closed(image: Image.Image) -> Image.Image:
    image.close()
    return image


def _on_closed_file(data: bytes) -> Image.Image:
    file = io.BytesIO(data)
    image = Image.open(file)
    file.close()
    return image


def _with_info(chance: random.Random) -> Image.Image:
    image = small(chance.choice(("P", "RGB", "L", "RGBA", "1")))
    image.info["transparency"] = chance.choice((b"\x00" * 300, 999, -1, (1, 2, 3), "red", None, b"", [1], (1,)))
    image.info["exif"] = chance.choice(
        (b"Exif\x00\x00garbage", b"", "text", None, 5, b"II*\x00\x08\x00\x00\x00\xff\xff")
    )
    return image


class _Drip(io.BytesIO):
    """A file that fails once so many bytes were read."""

    def __init__(self, data: bytes, chance: random.Random) -> None:
        super().__init__(data)
        self._left, self._fault = chance.randrange(200, 4000), chance.choice(FAULTS)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._left -= len(data)
        if self._left < 0:
            raise self._fault()
        return data


def _lazy(chance: random.Random) -> object:
    """An object that computes when it is looked at, and fails then."""
    hooks = {name: _raiser(chance) for name in chance.sample(_HOOKS, chance.choice((1, 1, 2, 4)))}
    if "__array__" not in hooks and chance.random() < 0.5:
        hooks["__array__"] = chance.choice(
            (_raiser(chance), lambda self, dtype=None, copy=None: np.zeros((9, 9, 3), np.uint8))
        )
    for name in ("__class__", "__array_interface__", "__array_struct__"):
        if name in hooks:
            hooks[name] = property(hooks[name])
    shape: dict[str, Any] = {"shape": (9, 9, 3), "dtype": np.dtype("uint8"), "ndim": 3} if chance.random() < 0.5 else {}
    return type("Lazy", (), {**shape, **hooks})()


def _raiser(chance: random.Random) -> Callable[..., NoReturn]:
    fault = chance.choice(FAULTS)

    def fail(self: object, *args: object, **options: object) -> NoReturn:
        raise fault()

    return fail


def _liar(chance: random.Random) -> object:
    """An object that says one thing of itself and gives another."""
    given = chance.choice(
        (np.zeros((9, 9, 3), np.uint8), np.zeros(0), "text", None, 5, [1], np.zeros((9, 9), object), object(), b"a")
    )
    path = chance.choice(("a.png", b"a.png", "\x00", 5, None, "", "data:,", "/proc/self/mem", "x" * 5000))
    kind = chance.choice((str, bytes, dict, list, np.ndarray, Image.Image, float, pathlib.Path))
    made: tuple[dict[str, Any], ...] = (
        {"__array__": lambda self, dtype=None, copy=None: given},
        {"__array__": lambda self: given},
        {"__array__": given},
        {
            "__array__": lambda self, dtype=None, copy=None: given,
            "shape": (2**40,),
            "dtype": "u9",
            "ndim": -1,
            "nbytes": "many",
        },
        {"__array_interface__": {"shape": (9, 9, 3), "typestr": "|u1", "data": b"short", "version": 3}},
        {"__array_interface__": {"shape": (-1,), "typestr": "nonsense", "version": 99}},
        {"__array_interface__": 5},
        {"__fspath__": lambda self: path},
        {"__fspath__": path},
        {"__len__": lambda self: 2**62, "__getitem__": lambda self, at: self},
        {"__getattr__": lambda self, name: self, "__call__": lambda self, *args, **options: self},
        {"__getattr__": lambda self, name: None},
        {"__class__": property(lambda self: kind)},
        {"__eq__": lambda self, other: True, "__hash__": lambda self: 0, "__bool__": lambda self: True},
    )
    return type("Liar", (), chance.choice(made))()
