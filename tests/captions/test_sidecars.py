"""Text files beside images: the right name, whole or not there, and told before the work where they cannot be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from qwenvl_kit.captions.sidecars import Sidecars, read_caption, write_text
from qwenvl_kit.errors import ConfigError, RowError

NAMES = [b"a b.png", "🐕.jpg".encode(), b"caf\xe9.png", b"two.dots.webp", b"bare", b"two\nlines.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / os.fsdecode(name)).touch()
    return tmp_path


def test_odd_names_keep_their_bytes_up_to_the_suffix(folder: Path) -> None:
    cells = [os.path.join(folder, os.fsdecode(name)) for name in NAMES]
    sidecars = Sidecars.of(cells, ".txt")

    for row in range(len(cells)):
        sidecars.write(row, f"caption {row} 猫")

    wanted = [b"a b.txt", "🐕.txt".encode(), b"caf\xe9.txt", b"two.dots.txt", b"bare.txt", b"two\nlines.txt"]
    for row, name in enumerate(wanted):
        assert (folder / os.fsdecode(name)).read_text("utf-8") == f"caption {row} 猫"
    assert sorted(os.listdir(os.fsencode(folder))) == sorted([*NAMES, *wanted]), "nothing else is left"


def test_null_rows_have_no_file_and_urls_of_files_have_one(folder: Path) -> None:
    sidecars = Sidecars.of([None, (folder / "a b.png").as_uri(), {"path": folder / "🐕.jpg"}], ".caption")

    assert sidecars.paths == (None, str(folder / "a b.caption"), str(folder / "🐕.caption"))
    sidecars.write(0, "nowhere")


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["a.jpg", "b.jpg", "a.png"], r"Rows 0 and 2, .*a\.jpg and .*a\.png, have one stem"),
        (["a.jpg", "a.jpg"], "Rows 0 and 1 are the same image"),
        (["https://example.org/a.jpg"], "Row 0: The cell is no local file"),
        ([np.zeros((4, 4, 3), np.uint8)], "no local file, but array"),
        ([["a.jpg", "b.jpg"]], "has 2 images"),
    ],
)
def test_images_without_a_file_of_their_own_are_told_before_the_work(
    cells: list[object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=told):
        Sidecars.of(cells, ".txt")


def test_a_folder_where_nothing_can_be_written_is_told_before_the_work() -> None:
    with pytest.raises(ConfigError, match="No text file can be written to the folder"):
        Sidecars.of(["/proc/a.png"], ".txt")


@pytest.mark.parametrize("suffix", ["txt", "", "../x.txt", ".a/b", ".PNG", ".jpeg"])
def test_a_suffix_that_is_none_or_an_images_is_refused(suffix: str) -> None:
    with pytest.raises(ConfigError, match="sidecar="):
        Sidecars.of(["a.gif"], suffix)


def test_a_caption_never_takes_the_place_of_an_image_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()

    with pytest.raises(ConfigError, match="would overwrite an image"):
        Sidecars.of([str(tmp_path / "picture.txt")], ".txt")
    with pytest.raises(ConfigError, match="is a folder"):
        Sidecars.of([str(tmp_path / "b.png")], ".txt")


def test_skip_keeps_texts_and_asks_where_a_file_is_blank_or_missing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf kept \n")
    (tmp_path / "b.txt").write_text(" \n")
    cells = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]

    assert [Sidecars.of(cells, ".txt").kept(row) for row in range(3)] == ["kept", None, None]
    assert [Sidecars.of(cells, ".txt", "overwrite").kept(row) for row in range(3)] == [None] * 3


def test_append_adds_a_line_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n")
    sidecars = Sidecars.of([str(tmp_path / "a.png")], ".txt", "append")

    for caption in ("second", "second", "third", "ir"):
        sidecars.write(0, caption)

    assert (tmp_path / "a.txt").read_text() == "first\nsecond\nthird\nir"


def test_a_failed_write_leaves_the_earlier_caption_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sidecars = Sidecars.of([str(tmp_path / "a.png")], ".txt", "overwrite")

    with pytest.raises(RowError, match="No space left on device"):
        sidecars.write(0, "after")

    assert read_caption(str(tmp_path / "a.txt")) == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_write_left_is_taken_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.txt")
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_: None)
        killed.setattr(os, "unlink", lambda *_: None)
        write_text(path, "lost")
    assert read_caption(path) == ""
    assert len(os.listdir(tmp_path)) == 1

    write_text(path, "found")

    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").touch()
    (tmp_path / "a.txt").symlink_to("real.txt")

    Sidecars.of([str(tmp_path / "a.png")], ".txt", "overwrite").write(0, "text")

    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "text"


def test_a_file_has_the_mode_that_others_of_the_folder_get(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(str(tmp_path / "a.txt"), "text")

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "plain")]
    assert modes[0] == modes[1]
