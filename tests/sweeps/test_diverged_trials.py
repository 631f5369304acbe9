"""Test sweeps with trials whose predictions are not finite."""

import pytest
import yaml

from stssl.base.errors import RunError
from stssl.sweeps.results import rows
from stssl.sweeps.run import run_sweep, search
from stssl.sweeps.spec import load_sweep

HOT = 1e25


@pytest.fixture
def write(recipe_tree, tmp_path):
    """Writes a sweep over learning rates, tried in the order given."""

    def go(rates, **changes):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
        tree = {
            "recipe": "recipe.yaml",
            "change": {"compute.nonfinite_steps": 1000, "model.metadata": "none", "schedule.supervised_start": 0},
            "metric": "accuracy",
            "trials": len(rates),
            "scheduler": {"name": "asha", "grace": 4, "reduction": 2},
            "points": [{"optimizer.lr": rate} for rate in rates],
            "search": {"optimizer.lr": rates},
            "storage": str(tmp_path / "sweeps"),
        }
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(tree | changes))
        return path

    return go


def test_a_diverged_trial_fails_and_fills_no_rung(write):
    said = []
    book = search(load_sweep(write([HOT, 2e-3])), said.append)
    hot, fine = rows(book)
    assert hot.state == "failed" and hot.values is None and "no best checkpoint" in hot.reason
    assert fine.state == "complete" and fine.last == 12  # a rung with one trial stops nobody
    trial = book.study.get_trials(deepcopy=False)[0]
    assert trial.state.name == "FAIL" and not trial.intermediate_values


@pytest.mark.parametrize("metric", ["accuracy", ["loss", "F1"]])
def test_a_sweep_whose_trials_all_failed_has_no_best(write, metric, tmp_path):
    changes = {"metric": metric, "mode": ["min", "max"], "scheduler": {"name": "none"}} if metric != "accuracy" else {}
    with pytest.raises(RunError, match=r"all 1 trials of .* failed, so there is no best one"):
        run_sweep(write([HOT], **changes), (), lambda line: None)
    folder = tmp_path / "sweeps" / "s"
    assert not (folder / "best.yaml").exists() and not (folder / "best.json").exists()
    assert "failed" in (folder / "trials.csv").read_text()
