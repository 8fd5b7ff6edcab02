"""Print captions, or write them to a table and to lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qwenvl_kit.cli.tables import complete, record_of, rescue, save
from qwenvl_kit.cli.terminal import escape, whole

_SHOWN_FLAGS = 5


@dataclass(frozen=True, slots=True)
class CaptionOutputs:
    """Where the captions of a command go.

    Attributes
    ----------
    images : Series
        The files, as the command line names them.
    prompts : sequence of str or None
        The prompt of each.
    out, jsonl : Path or None
        A table, and lines of JSON.
    has_sidecars : bool
        Text files have the captions already, so they are not printed.
    """

    images: pd.Series
    prompts: Sequence[str | None]
    out: Path | None
    jsonl: Path | None
    has_sidecars: bool

    def write(self, results: pd.DataFrame) -> int:
        """Print or write, and return the exit status."""
        table = pd.concat([self.images.rename("image"), results], axis=1)
        failures = 0
        if self.jsonl is not None:
            failures += _write_lines(table, self.prompts, results.attrs, self.jsonl)
        if self.out is not None:
            failures += _write_table(table, results.attrs, self.out)
        elif self.jsonl is None and not self.has_sidecars:
            failures += _print_captions(table, results.attrs)
        if self.has_sidecars:
            _print_counts(table)
        return min(failures, 1)


def _print_captions(table: pd.DataFrame, record: dict[Any, Any]) -> int:
    try:
        for image, text, status in zip(table["image"], table["text"], table["status"], strict=True):
            print(f"{escape(whole(image))}\t{escape(text) if status == 'ok' else f'[{status}]'}")
        sys.stdout.flush()
    except OSError as error:  # such as a full disk behind the standard output
        saved = rescue(table, ".csv", record)
        where = "Saving them to a file failed too." if saved is None else f"They are in {saved}"
        print(f"qwenvl-kit: Cannot print the captions: {error.strerror}. {where}", file=sys.stderr)
        return 1
    return 0


def _write_table(table: pd.DataFrame, record: dict[Any, Any], out: Path) -> int:
    saved, why = save(table, out, record)
    if why is not None:
        print(f"qwenvl-kit: Cannot write {out}: {why}. The {len(table)} rows are in {saved}", file=sys.stderr)
        return 1
    print(f"{len(table)} rows in {out}, the record in {record_of(out).name}", file=sys.stderr)
    return 0


def _write_lines(table: pd.DataFrame, prompts: Sequence[str | None], record: dict[Any, Any], out: Path) -> int:
    """Write a line of JSON per image; the bytes of names that are no text become escapes."""
    ran = record.get("effective", {})
    settings = {**record.get("asked", {}), **{name: ran[name] for name in ("model", "fingerprint") if name in ran}}
    lines = [
        json.dumps(_line(row, prompt, settings), ensure_ascii=False)
        for row, prompt in zip(table.to_dict("records"), prompts, strict=True)
    ]
    try:
        with complete(out) as partial:
            partial.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
    except OSError as error:
        saved = rescue(table, ".jsonl", record)
        print(f"qwenvl-kit: Cannot write {out}: {error.strerror}. The rows are in {saved}", file=sys.stderr)
        return 1
    print(f"{len(lines)} lines in {out}", file=sys.stderr)
    return 0


def _line(row: dict[Any, Any], prompt: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    # Skipped rows have the caption of an earlier call, whose prompt and settings are not known.
    was_asked = not pd.isna(row["finish_reason"]) or row["status"] != "ok"
    line = {"file": row["image"], "caption": row["text"] if row["status"] == "ok" else None, "status": row["status"]}
    line |= {name: row[name] for name in ("error", "flag") if not pd.isna(row[name])}
    return {**line, "prompt": prompt, "settings": settings} if was_asked else line


def _print_counts(table: pd.DataFrame) -> None:
    kept = int((table["cached"] & table["finish_reason"].isna()).sum())
    n_written = int((table["status"] == "ok").sum()) - kept
    n_failed, flagged = int((table["status"] == "error").sum()), table[table["flag"].notna()]
    print(f"{n_written} captions written, {kept} kept, {len(flagged)} flagged, {n_failed} failed", file=sys.stderr)
    for image, flag in list(zip(flagged["image"], flagged["flag"], strict=True))[:_SHOWN_FLAGS]:
        print(f"flagged: {escape(whole(image))}: {escape(flag)}", file=sys.stderr)
    if len(flagged) > _SHOWN_FLAGS:
        print(f"… and {len(flagged) - _SHOWN_FLAGS} more are flagged", file=sys.stderr)
