"""Test a sweep in this process whose study is kept by a real PostgreSQL server."""

import json
import tempfile
from pathlib import Path

import optuna
import pytest

from stssl.sweeps.run import run_sweep


@pytest.fixture
def postgres():
    """Start a real PostgreSQL server and return its address, in a folder that its own system user may reach."""
    server_of = pytest.importorskip("pgserver", reason="pgserver has wheels for Python < 3.13 alone").get_server
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as data:
        try:
            server = server_of(Path(data) / "data", cleanup_mode="stop")
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def test_a_study_in_postgresql(open_book, tmp_path, postgres):
    plan = {"scheduler": {"name": "none"}, "search": {"algorithm.threshold": {"low": 0.2, "high": 0.9}}}
    open_book("shared", trials=1, study=postgres, **plan)
    run_sweep(tmp_path / "shared.yaml", [], print)
    study = optuna.load_study(study_name="shared", storage=postgres.replace("postgresql:", "postgresql+psycopg:", 1))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    assert not (tmp_path / "sweeps" / "shared" / "study.db").exists()
    best = json.loads((tmp_path / "sweeps" / "shared" / "best.json").read_text())
    assert best["accuracy"] == study.best_value
