"""What the harness finds: each kind of planted fault, and nothing where there is none."""

import time

import pytest
from fuzz.harness import Target, fuzz
from fuzz.mutations import BYTES, changed

from stssl.base.errors import DataError
from stssl.training.runtime import keep_memory


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 20)
    return tmp_path / "a.txt"


def _found(file, parse, **limits):
    outcome = fuzz(Target((file,), parse, BYTES, **limits), inputs=20)
    assert file.read_bytes() == b"0123456789" * 20, "the file is as it was"
    return outcome


def _decode(path):
    try:
        return path.read_bytes().decode("ascii")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text") from None


def test_a_good_parser_has_no_findings(file):
    outcome = _found(file, _decode)
    assert outcome.findings == [] and outcome.accepted > 0 and outcome.refused > 0


def test_control_an_unknown_exception_is_found(file):
    outcome = _found(file, lambda path: path.read_bytes().decode("ascii"))
    assert "UnicodeDecodeError" in outcome.findings[0] and "input " in outcome.findings[0]


def test_control_an_error_that_does_not_name_the_file_is_found(file):
    def parse(path):
        raise DataError("it is damaged")

    assert "does not name the file" in _found(file, parse).findings[0]


def test_control_a_hang_is_found(file):
    def parse(path):
        time.sleep(60 if len(path.read_bytes()) < 150 else 0)

    assert "longer than 0.2 s" in _found(file, parse, seconds=0.2).findings[0]


def test_control_memory_is_found(file):
    keep_memory()  # as in a process that trained: this heap would serve the parser without growing
    freed = [bytearray(1 << 20) for _ in range(300)]
    freed.clear()

    def parse(path):
        raise DataError(f"{path} {len(bytearray(b'x') * (200 << 20 if len(path.read_bytes()) < 150 else 1))}")

    assert "MB of memory" in _found(file, parse, memory=100 << 20).findings[0]


def test_control_wrong_values_are_found(file):
    def parse(path):
        assert path.read_bytes() == b"0123456789" * 20, "other values"

    assert "other values" in _found(file, parse).findings[0]


def test_changes_leave_the_original_alone():
    import random

    tree = {"a": [1, {"b": 2}], "c": "x"}
    seen = {repr(changed(random.Random(seed), tree)) for seed in range(50)}
    assert tree == {"a": [1, {"b": 2}], "c": "x"} and len(seen) > 20
