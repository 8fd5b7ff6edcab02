"""``qwenvl-kit caption`` as a shell sees it: files written, lines printed, exit status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from qwenvl_kit import Result, StoreError
from qwenvl_kit.cli import main, tables
from qwenvl_kit.store import SqliteStore

ECHO = ["--backend", "echo", "--no-progress"]
EXIF_ORIENTATION = 0x0112


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good, truncated, CMYK, rotated and non-image files, and one hidden."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.effect_noise((120, 60), 50).convert("RGB")
    picture.save(folder / "a_good.png")
    whole = folder / "b_truncated.jpg"
    picture.save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    picture.convert("CMYK").save(folder / "c_cmyk.jpg")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    picture.save(folder / "d_rotated.jpg", exif=exif)
    (folder / "e_notes.txt").write_text("no picture")
    (folder / ".hidden").write_text("not looked at")
    return folder


def read(out: Path) -> pd.DataFrame:
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    return readers[out.suffix](out)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_mixed_folder_gives_one_row_each_and_names_the_errors(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"captions{suffix}"

    status = main(["caption", str(folder), "--out", str(out), *ECHO])

    assert status == 0
    table = read(out)
    assert [Path(image).name for image in table["image"]] == [
        "a_good.png",
        "b_truncated.jpg",
        "c_cmyk.jpg",
        "d_rotated.jpg",
        "e_notes.txt",
    ]
    assert table["status"].tolist() == ["ok", "error", "ok", "ok", "error"]
    rotated = table[table["image"].str.endswith("d_rotated.jpg")].iloc[0]
    assert rotated["height"] > rotated["width"]
    told = capsys.readouterr().err
    assert "b_truncated.jpg" in told
    assert "e_notes.txt" in told


def test_what_ran_is_written_beside_the_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"

    main(["caption", str(folder / "a_good.png"), "--out", str(out), "--batch-size", "2", *ECHO])

    record = json.loads((tmp_path / "captions.csv.config.json").read_text())
    assert record["asked"] == {"backend": "echo", "batch_size": 2, "progress": False}
    assert record["effective"]["attention"] == "sdpa"


def test_on_error_raise_writes_all_rows_and_fails_with_the_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.csv"

    status = main(["caption", str(folder), "--out", str(out), "--on-error", "raise", *ECHO])

    assert status == 1
    assert len(read(out)) == 5
    told = capsys.readouterr().err
    assert "b_truncated.jpg" in told
    assert "e_notes.txt" in told


def test_without_out_the_captions_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["caption", str(folder / "a_good.png"), "--prompt", "What is it?", *ECHO])

    assert "a_good.png\tWhat is it?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["caption", "x.png", "--dtype", "fp8"], "dtype='fp8' is invalid"),
        (["caption", "x.png", "--out", "captions.xlsx"], "unsupported suffix. Use one of: .parquet, .csv, .jsonl"),
        (["caption", "x.png", "--out", "no/such/folder/captions.csv"], "Create no/such/folder first"),
        (["caption", "no-such-folder/"], "No folder no-such-folder/"),
        pytest.param(
            ["caption", "x.png", "--model-name", "no/such-model", "--model-path", "nowhere"],
            "demo",
            marks=pytest.mark.model,
        ),
    ],
    ids=["bad-dtype", "bad-format", "no-out-folder", "no-folder", "no-model"],
)
def test_wrong_words_end_with_status_2_and_say_the_fix(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_every_option_can_be_given_as_a_flag(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    flags = {
        "--resized-height": "none",
        "--resized-width": "112",
        "--do-sample": None,
        "--temperature": "0.5",
        "--top-k": "0",
        "--top-p": "0.9",
        "--seed": "3",
        "--max-caption-length": "7",
        "--repetition-penalty": "1.1",
        "--no-use-flash-attention-2": None,
        "--image-src-type": "image_url",
        "--timeout-s": "2.5",
        "--device-map": '{"": "cpu"}',
        "--max-memory": '{"0": "2GiB", "cpu": "4GiB"}',
    }
    words = [word for flag, value in flags.items() for word in (flag, value) if word is not None]

    assert main(["caption", str(folder / "a_good.png"), "--out", str(out), *words, *ECHO]) == 0

    asked = json.loads((tmp_path / "captions.csv.config.json").read_text())["asked"]
    assert asked["resized_height"] is None
    assert asked["resized_width"] == 112
    assert asked["device_map"] == {"": "cpu"}
    assert asked["max_memory"] == {"0": "2GiB", "cpu": "4GiB"}
    assert asked["do_sample"] is True
    assert asked["use_flash_attention_2"] is False


@pytest.fixture
def odd_names(tmp_path: Path) -> Path:
    """Files whose names are no text, steer a terminal, look like formulas, or end in white space."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [
        b"plain.png",
        b"caf\xe9.png",
        b"\xff\xfe.png",
        b"red\x1b[31m.png",
        b"two\nlines.png",
        b"=1+1.png",
        b" a.png \n",
    ]
    for number, name in enumerate(names):
        picture = Image.new("RGB", (60, 60), (number, 0, 0))
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            picture.save(file, format="PNG")
    return folder


@pytest.mark.parametrize("out", [None, "o.csv", "o.parquet", "o.jsonl"])
def test_a_file_whose_name_is_no_text_is_read_and_named_with_a_replacement(
    odd_names: Path, tmp_path: Path, out: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [] if out is None else ["--out", str(tmp_path / out)]

    assert main(["caption", str(odd_names), *words, *ECHO]) == 0

    if out is None:
        lines = capsys.readouterr().out.splitlines()
        names = [Path(line.split("\t")[0]).name for line in lines]
        texts = [line.split("\t")[1] for line in lines]
    else:
        table = read(tmp_path / out)
        assert (table["status"] == "ok").all(), table["error"].tolist()
        names = [Path(image).name for image in table["image"]]
        texts = table["text"].tolist()
    written = {"red\x1b[31m.png", "two\nlines.png", " a.png \n"}
    if out is None:
        written = {name.encode("unicode_escape").decode() for name in written}
    assert set(names) == {"plain.png", "caf\ufffd.png", "\ufffd\ufffd.png", "=1+1.png", *written}
    assert len(set(texts)) == 7, "each was read: the echo names the picture"


def test_an_odd_name_alone_in_the_present_folder(odd_names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(odd_names)

    assert main(["caption", "caf\udce9.png", ".", "--out", "../o.csv", *ECHO]) == 0

    table = read(odd_names.parent / "o.csv")
    assert (table["status"] == "ok").all()
    assert table["image"].iloc[0] == "caf\ufffd.png"
    assert "./=1+1.png" in table["image"].tolist()


@pytest.mark.parametrize(
    "out", ["folder.csv", "taken.csv", f"{'a' * 240}.csv", "none/o.csv", "file.csv/o.csv", "a\0.csv"]
)
def test_an_out_that_cannot_be_written_is_refused_before_any_work(
    folder: Path,
    tmp_path: Path,
    out: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "taken.csv.config.json").mkdir()
    (tmp_path / "file.csv").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("qwenvl_kit.inference.echo.Echo._answer", lambda *_: pytest.fail("asked"))

    assert main(["caption", str(folder), "--out", str(tmp_path / out), *ECHO]) == 2

    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--out" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
def test_an_out_where_no_file_can_be_made_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(folder), "--out", "/proc/captions.csv", *ECHO]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("on_error", ["keep", "raise"])
def test_a_table_that_cannot_be_written_in_the_end_is_written_elsewhere_and_said(
    folder: Path,
    tmp_path: Path,
    on_error: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "o.csv":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)

    assert main(["caption", str(folder), "--out", str(tmp_path / "o.csv"), "--on-error", on_error, *ECHO]) == 1

    found = re.search(
        r"Cannot write \S+o\.csv: No space left on device\. The 5 rows are in (\S+)", capsys.readouterr().err
    )
    assert found is not None
    assert len(read(Path(found.group(1)))) == 5
    assert not (tmp_path / ".o.csv.partial").exists()


def test_rows_that_were_done_when_the_disk_of_the_store_was_full_are_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = SqliteStore.put
    kept: list[str] = []

    def full_after_one(self: SqliteStore, key: str, result: Result) -> None:
        if kept:
            raise StoreError("the disk is full")
        put(self, key, result)
        kept.append(key)

    monkeypatch.setattr(SqliteStore, "put", full_after_one)
    out = tmp_path / "o.csv"
    words = ["--out", str(out), "--store", str(tmp_path / "a.db"), "--batch-size", "1"]

    assert main(["caption", str(folder), *words, *ECHO]) == 1

    assert (read(out)["status"] == "ok").sum() == 1
    assert "the disk is full" in capsys.readouterr().err


def test_a_format_that_fails_gives_lines_of_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fails(*_: object, **__: object) -> None:
        raise TypeError("Arrow has no type for it")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fails)

    assert main(["caption", str(folder), "--out", str(tmp_path / "o.parquet"), *ECHO]) == 1

    found = re.search(r"Arrow has no type for it\. The 5 rows are in (\S+\.jsonl)", capsys.readouterr().err)
    assert found is not None
    assert len(read(Path(found.group(1)))) == 5


FORMULAS = ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_a_spreadsheet_would_run_gets_an_apostrophe_in_csv_only(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"o{suffix}"

    tables.write_table(pd.DataFrame({"text": [*FORMULAS, "a = b", None], "number": -1.5}), out)

    guard = "'" if suffix == ".csv" else ""
    assert out.read_bytes().count(b"-1.5") > 0 or suffix == ".parquet", "numbers are no formulas"
    again = pd.read_csv(out, lineterminator="\n") if suffix == ".csv" else read(out)
    assert again["text"].tolist()[:-1] == [*(guard + text for text in FORMULAS), "a = b"]
    assert pd.isna(again["text"].iloc[-1])


def test_columns_keep_their_types_in_parquet(folder: Path, tmp_path: Path) -> None:
    assert main(["caption", str(folder / "a_good.png"), "--out", str(tmp_path / "o.parquet"), *ECHO]) == 0

    import pyarrow.parquet as pq

    schema = pq.read_schema(tmp_path / "o.parquet")
    assert {str(schema.field(name).type) for name in ("image", "text", "error", "stage")} <= {"string", "large_string"}


def started(words: list[str], **how: object) -> subprocess.Popen[bytes]:
    code = "import sys; from qwenvl_kit.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, **how)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("words", [["caption"], ["--help"], ["caption", "--help"]], ids=" ".join)
def test_an_output_that_lacks_characters_gets_replacements(folder: Path, encoding: str, words: list[str]) -> None:
    pictures = [str(folder / "a_good.png"), *ECHO] if words == ["caption"] else []
    process = started(
        [*words, *pictures], stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    )
    out, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert b"?" in out or words == ["--help"]


def test_a_reader_that_goes_away_ends_nothing(folder: Path) -> None:
    """As in ``qwenvl-kit caption … | head -1``."""
    many = [str(folder / "a_good.png")] * 3000  # more than a pipe holds
    process = started(["caption", *many, *ECHO], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"a_good.png" in process.stdout.readline()
    process.stdout.close()

    assert process.wait(60) == 0
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_captions_that_cannot_be_printed_are_written(folder: Path, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = started(
            ["caption", str(folder / "a_good.png"), *ECHO], stdout=full, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
        _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    (line,) = err.decode().splitlines()
    assert "No space left on device" in line
    assert len(pd.read_csv(line.rpartition(" ")[2])) == 1


def test_nothing_that_others_said_steers_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "x\x1b[31m\ny\x9b2J\u202e\u2028z\tw 図"

    assert (
        main(["caption", str(folder / "a_good.png"), str(folder / "\x1b]0;pwned\x07.png"), "--prompt", said, *ECHO])
        == 0
    )

    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2
    assert r"x\x1b[31m\ny\x9b2J\u202e\u2028z\tw 図" in told.out
    assert not set("\x1b\x07\x9b\u202e\u2028") & set(told.out + told.err)


def test_a_folder_that_cannot_be_read_is_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def denied(_: object) -> object:
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr("os.scandir", denied)

    assert main(["caption", str(folder), *ECHO]) == 2
    assert "Cannot read the folder" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["~no-such-user/a.png", "a" * 5000, "data:image/png;base64,AAAA"])
def test_a_place_that_is_no_file_is_that_rows_error(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["caption", place, *ECHO]) == 0
    assert "[error]" in capsys.readouterr().out
