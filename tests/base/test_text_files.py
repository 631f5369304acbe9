"""Files and JSON from strangers: right values, or one line that names the file."""

import os
from pathlib import Path

import pytest

from stssl.base.errors import DataError, RunError
from stssl.base.textfiles import JSON_DEPTH, parse_json, read_bounded, read_json


def test_json(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": [1, 2.5, "é"]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "é"]}
    deepest = "[" * (JSON_DEPTH - 1) + "]" * (JSON_DEPTH - 1)
    assert parse_json(f'{{"a": {deepest}}}', "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b'{"a": 1', "line 1"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "keys and values"),
        (b"null", "keys and values"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 150 + b"1" + b"}" * 150, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": {"\\ud800": 1}}', "surrogate"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "larger than 1,000 bytes"),
    ],
)
def test_bad_json_names_the_file_and_the_advice(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    most = 1000 if b"xxx" in content else 1 << 20
    with pytest.raises(RunError) as caught:
        read_json(tmp_path / "a.json", error=RunError, most=most, advice="Delete it.")
    text = str(caught.value)
    assert str(tmp_path / "a.json") in text and words in text and text.endswith("Delete it.") and len(text) < 400


def test_only_plain_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "none", "a\0b"):
        with pytest.raises(DataError, match="cannot read"):
            read_bounded(path, 10)


def test_a_bound_takes_no_memory(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_bounded(tmp_path / "a", 1 << 45) == b"0123456789" == read_bounded(tmp_path / "a", 10)
    with pytest.raises(DataError, match="larger than 9 bytes"):
        read_bounded(tmp_path / "a", 9)
    assert read_bounded("/proc/self/status", 1 << 45).endswith(b"\n"), "a file that does not know its size"
