from pathlib import Path

import pytest

from qwenvl_kit.errors import StoreWarning
from qwenvl_kit.sqlite_schema import APPLICATION_ID
from qwenvl_kit.store import open_store


def test_warnings_name_the_callers_line_through_context_managers(tmp_path: Path) -> None:
    header = bytearray(b"SQLite format 3\0".ljust(100, b"\0"))
    header[68:72] = APPLICATION_ID.to_bytes(4)
    (tmp_path / "answers.db").write_bytes(header + b"broken" * 1000)

    with pytest.warns(StoreWarning) as caught, open_store(tmp_path / "answers.db"):
        pass

    assert [warning.filename for warning in caught] == [__file__]
