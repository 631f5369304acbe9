import json

import pytest

from stssl.base.errors import RunError
from stssl.base.whole_files import append_line, write_whole
from stssl.training.run_files import NewRows


def line(step):
    return json.dumps({"step": step, "kind": "train", "loss": step / 2})


def steps(rows):
    return [row["step"] for row in rows]


def test_rows_come_once_and_only_new_bytes_are_read(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    rows = NewRows(path)
    assert rows.take() == []
    parsed = []
    monkeypatch.setattr("stssl.training.run_files._row", lambda data: parsed.append(data) or json.loads(data))
    for step in range(50):
        append_line(path, line(step))
        assert steps(rows.take()) == [step] and rows.take() == []
    assert len(parsed) == 50
    assert steps(NewRows(path).take()) == list(range(50))


def test_half_a_line_waits_for_its_end_and_damage_is_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = NewRows(path)
    whole = f"{line(1)}\n{line(2)}\n".encode()
    for end, found in ((5, []), (len(whole) - 3, [1]), (len(whole), [2])):
        path.write_bytes(whole[:end])
        assert steps(rows.take()) == found
    append_line(path, "{no json")
    append_line(path, line(3))
    assert steps(rows.take()) == [3]


@pytest.mark.parametrize(("kept", "found"), [(3, [3, 4]), (5, []), (0, [3, 4])])
def test_a_resumed_run_gives_no_row_twice(tmp_path, kept, found):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{line(step)}\n" for step in range(5 if kept == 5 else 3)))
    rows = NewRows(path)
    rows.take()
    write_whole(path, "".join(f"{line(step)}\n" for step in range(kept)))
    if kept == 3:
        assert rows.take() == []
    for step in range(kept, 5):
        append_line(path, line(step))
    assert steps(rows.take()) == found


def test_a_folder_in_its_place_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"cannot read .*metrics.jsonl: it is not a file"):
        NewRows(tmp_path / "metrics.jsonl").take()
