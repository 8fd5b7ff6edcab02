"""``qwenvl-kit caption FOLDER --sidecar .txt`` as those who train on folders run it, also with kill -9."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kill_captions import captions, draw_images, kill_repeatedly, words
from PIL import Image

from qwenvl_kit.cli import main
from qwenvl_kit.cli.places import Search, images_in

ECHO = ["--backend", "echo", "--no-progress"]
NAMES = ["a b.png", "10_dog/rex.JPG", "10_dog/🐕.png", "10_dog/deep/caf\udce9.png", "skip/no.png", ".hidden/no.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders of folders, with files beside them that are none."""
    folder = tmp_path / "set"
    for level, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            Image.new("RGB", (56, 56), (level, 0, 0)).save(file, "PNG")
    (folder / "notes.md").write_text("no picture")
    (folder / "10_dog" / "🐕.npz").write_bytes(b"latents")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*.txt"))}


def test_a_tree_gets_a_text_file_beside_each_picture_and_none_beside_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--recursive", "--sidecar", ".txt", "--exclude", "skip/*", "--prompt", "a {stem} in {folder}"]

    assert main(["caption", str(folder), *words, "--prepend", "tok, ", "--start-with", "A photo of", *ECHO]) == 0

    found = {name: text.split(" [")[0] for name, text in texts(folder).items()}
    assert found == {
        "a b.txt": "tok, A photo of a a b in set",
        "10_dog/rex.txt": "tok, A photo of a rex in 10_dog",
        "10_dog/🐕.txt": "tok, A photo of a 🐕 in 10_dog",
        "10_dog/deep/caf\udce9.txt": "tok, A photo of a caf? in deep",
    }
    told = capsys.readouterr()
    assert told.out == "", "captions are in the files"
    assert "4 captions written, 0 kept, 0 flagged, 0 failed" in told.err


def test_a_second_call_keeps_them_and_adds_the_pictures_that_are_new(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["caption", str(folder), "--recursive", "--sidecar", ".txt", *ECHO]
    main(words)
    before = texts(folder)
    Image.new("RGB", (56, 56), "blue").save(folder / "new.png")

    assert main([*words, "--prompt", "else"]) == 0

    assert {name: text for name, text in texts(folder).items() if name != "new.txt"} == before
    assert texts(folder)["new.txt"].startswith("else")
    assert "1 captions written, 5 kept" in capsys.readouterr().err


def test_lines_of_json_have_file_caption_and_settings(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    (folder / "a b.txt").write_text("mine")
    words = ["--recursive", "--sidecar", ".txt", "--jsonl", str(out), "--must", "cat", "--prompt", "a dog"]

    assert main(["caption", str(folder), *words, "--start-with", "See", "--exclude", "*.JPG", *ECHO]) == 0

    lines = {line["file"]: line for line in map(json.loads, out.read_text("utf-8").splitlines())}
    assert {str(Path(name).relative_to(folder)) for name in lines} == {*NAMES[2:5], NAMES[0]}, "bytes of names too"
    mine, other = lines[str(folder / "a b.png")], lines[str(folder / "skip/no.png")]
    assert mine == {"file": str(folder / "a b.png"), "caption": "mine", "status": "ok"}
    assert other["caption"] == (folder / "skip/no.txt").read_text()
    assert other["prompt"] == "a dog"
    assert other["settings"]["start_with"] == "See"
    assert other["settings"]["model"] == "echo"
    assert "flag" not in other, "the second prompt has the word"


def test_flags_and_failures_are_counted_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["--sidecar", ".txt", "--must-not", "answer", "--must", "cat", "--max-caption-length", "2"]

    assert main(["caption", str(folder), *words, "--prompt", "a dog", *ECHO]) == 0

    told = capsys.readouterr().err
    assert "1 captions written, 0 kept, 1 flagged, 1 failed" in told
    assert "a b.png: lacks 'cat'" in told
    assert not (folder / "broken.txt").exists()


def test_a_pool_of_prompts_is_read_from_a_file(folder: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.json"
    pool.write_text(json.dumps({"one {stem}": 1, "two {stem}": 1}))

    main(["caption", str(folder), "--recursive", "--sidecar", ".txt", "--prompts", str(pool), "--seed", "1", *ECHO])

    assert {text.split()[0] for text in texts(folder).values()} == {"one", "two"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sidecar", "txt"], "begins with a dot"),
        (["--existing", "append"], "Add sidecar='.txt'"),
        (["--jsonl", "a.csv"], "Use one of: .jsonl"),
        (["--prompts", "none.json"], "--prompts none.json cannot be read"),
        (["--sidecar", ".txt", "--exclude", "*"], "contains no images beside those of --exclude"),
        (["--prompt", "{title}"], "Write {{title}}"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else None,
)
def test_wrong_words_end_with_status_2_before_the_work(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(folder), *words, *ECHO]) == 2
    assert told in capsys.readouterr().err
    assert texts(folder) == {}


def test_two_pictures_of_one_stem_are_told_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (56, 56)).save(folder / "a b.webp")

    assert main(["caption", str(folder), "--sidecar", ".txt", *ECHO]) == 2
    assert "have one stem" in capsys.readouterr().err
    assert main(["caption", str(folder), "--sidecar", ".txt", "--exclude", "*.webp", *ECHO]) == 0


def test_globs_name_files_in_any_depth(folder: Path) -> None:
    found = list(images_in([f"{folder}/**/*.png"]))

    assert [os.path.relpath(path, folder) for path in found] == sorted([*NAMES[2:5], NAMES[0]])
    rest = list(images_in([f"{folder}/**"], Search(only_images=True, exclude=["*.png"])))
    assert rest == [f"{folder}/10_dog/rex.JPG"]


@pytest.mark.slow
def test_kill_9_leaves_whole_files_and_nothing_is_asked_again_that_is_written(tmp_path: Path) -> None:
    draw_images(tmp_path, 60)

    counts = kill_repeatedly(tmp_path, 3, longest_s=0.08, seed=7)

    assert 0 < counts[0] <= counts[-1] < 60, "each call wrote, and the last has work to do"
    known = captions(tmp_path)
    assert main(words(tmp_path)) == 0
    assert {name: text for name, text in captions(tmp_path).items() if name in known} == known
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] * 60 + [".txt"] * 60, "no other file is left"
