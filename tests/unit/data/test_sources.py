"""Rows with the numbers that a person finds them by, and one short message for everything that is wrong."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.config.schema import SourceConfig
from mrpo_ds.data.sources import read_rows
from mrpo_ds.errors import DataError

ROWS = [{"a": 1}, {"a": "x\u2028y\u0085z"}, {"a": None}]


def read(path: Path | str, limit: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    return list(read_rows(SourceConfig(source=str(path), limit=limit)))


def lines(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.JSONL"])
def test_json_formats(tmp_path: Path, name: str) -> None:
    raw = json.dumps(ROWS).encode() if name.endswith(".json") else lines(ROWS)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert read(tmp_path / name) == [(1, ROWS[0]), (2, ROWS[1]), (3, ROWS[2])]
    assert read(tmp_path / name, limit=2) == [(1, ROWS[0]), (2, ROWS[1])]


def test_parquet(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": [{"role": "user", "content": str(n)}], "score": float(n)} for n in range(2000)]
    write_parquet(tmp_path / "rows.parquet", rows)
    assert read(tmp_path / "rows.parquet") == list(enumerate(rows, start=1))
    assert read(tmp_path / "rows.parquet", limit=1) == [(1, rows[0])]


def test_a_line_ends_at_newline_only(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "x\xe2\x80\xa8y"}\r\n{"a": "\xc2\x85"}')
    assert read(tmp_path / "rows.jsonl") == [(1, {"a": "x\u2028y"}), (2, {"a": "\u0085"})]


def test_blank_lines_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n\n  \n{"a": 2}\n\n')
    assert read(tmp_path / "rows.jsonl") == [(1, {"a": 1}), (4, {"a": 2})]


def test_reads_no_further_than_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\nrubbish\n')
    assert read(tmp_path / "rows.jsonl", limit=1) == [(1, {"a": 1})]


def test_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    assert len(read("~/rows.jsonl")) == 3


@pytest.mark.parametrize("name", ["x.jsonl", "./x", "/no/x", "a/b/c", "~/x", "x.parquet"])
def test_missing_file_is_found_at_once(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(SourceConfig(source=name))
    assert str(caught.value) == (
        f"data source '{name}' does not exist; allowed: a .json, .jsonl, .jsonl.gz or .parquet file, or a Hub data set "
        "id such as 'owner/name'"
    )


@pytest.mark.parametrize("name", ["folder", "folder.jsonl", "rows.csv"])
def test_neither_file_nor_known_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name.startswith("folder") else path.write_text("a,b\n")
    with pytest.raises(DataError, match=f"'{path}' is not a .json, .jsonl, .jsonl.gz or .parquet file; convert it"):
        read(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1 "b": 2}', "{path} line 2 is not JSON: Expecting ',' delimiter (column 9); mend or remove that line"),
        (b"\xef\xbb\xbf{}", "{path} line 2 is not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) (column 1); "),
        (b'{"a": "\xff"}', "{path} line 2 is not UTF-8 (byte 8: invalid start byte); mend or remove that line"),
        (b"[1, 2]", "{path} line 2 is a JSON list; allowed: an object of columns"),
        (b'"text"', "{path} line 2 is a JSON string; allowed: an object of columns"),
        (b"3.5", "{path} line 2 is a JSON number; allowed: an object of columns"),
        (b"true", "{path} line 2 is a JSON boolean; allowed: an object of columns"),
        (b"null", "{path} line 2 is a JSON null; allowed: an object of columns"),
        (b'{"a": ' + b"9" * 5000 + b"}", "{path} line 2 is not JSON that Python can read: Exceeds the limit"),
        (b"[" * 100_000, "{path} line 2 is not JSON that Python can read: "),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_bad_line(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    path = tmp_path / name
    content = b"{}\n" + raw + b"\n{}\n"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(message.format(path=path))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'[{},\n {"a": 1,}]', "{path} is not JSON: "),
        (b'{"data": []}', "'{path}' holds a JSON object; allowed: a list of objects, one per row"),
        (b"[{}, 7]", "{path} row 2 is a JSON number; allowed: an object of columns"),
        (b"[\xff]", "{path} is not UTF-8 (byte 2: invalid start byte); mend it"),
    ],
)
def test_bad_list(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(message.format(path=path))


def test_bad_list_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'[{},\n {"a" 1}]')
    with pytest.raises(DataError, match=r"is not JSON: Expecting ':' delimiter \(line 2 column 7\); mend it"):
        read(tmp_path / "rows.json")


@pytest.mark.parametrize("cut", [slice(0, 30), slice(1, None)])
def test_broken_gzip(tmp_path: Path, cut: slice) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS * 10))[cut])
    with pytest.raises(DataError, match=f"'{path}' is not a whole gzip file: .*; copy it again"):
        read(path)


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=f"'{path}' is not readable as Parquet after row 0: "):
        read(path)


class TestHub:
    """The Hub itself is not asked: load_dataset is replaced."""

    def test_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def load_dataset(path: str, **options: object) -> list[dict[str, int]]:
            calls.append((path, options))
            return [{"a": 1}, {"a": 2}, {"a": 3}]

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        source = SourceConfig(source="owner/name", split="test", limit=2)
        assert list(read_rows(source)) == [(1, {"a": 1}), (2, {"a": 2})]
        assert calls == [("owner/name", {"split": "test"})]  # trust_remote_code is never passed

    @pytest.mark.parametrize("name", ["owner/name", "name", "owner/rows.csv"])
    def test_out_of_reach(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        def load_dataset(path: str, **options: object) -> None:
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub (LocalEntryNotFoundError)\nand more.")

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        with pytest.raises(DataError) as caught:
            read(name)
        assert str(caught.value) == (
            f"data source '{name}' is not a local file, and split 'train' of the Hub data set of that name cannot be "
            f"loaded: Couldn't reach '{name}' on the Hub (LocalEntryNotFoundError). Check the name, the network, "
            "HF_TOKEN and the cache (HF_HOME), or name a local .json, .jsonl, .jsonl.gz or .parquet file"
        )
