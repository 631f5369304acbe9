"""Runs with made-up predictions: what is compared, what is found, and what is refused."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_recipe

from stssl.analysis import report
from stssl.analysis.comparison import ComparisonOptions, Difference, _corrected, compare_runs
from stssl.analysis.run_groups import group_key, grouped_runs
from stssl.analysis.run_views import read_run
from stssl.analysis.score_tables import score_tables
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, RunError
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data
from stssl.scoring.evaluation import Evaluation, save_evaluations
from stssl.scoring.metrics import score
from stssl.training.launch import run
from stssl.training.trained_run import evaluate_run

OPTIONS = ComparisonOptions(part="train", draws=400)


class Maker:
    """Make runs by copies of one run, with other recipes and predictions."""

    def __init__(self, store: Path, folder: Path) -> None:
        short = {"schedule": {"steps": 4, "warmup": 0, "evaluate_every": 4}, "model": {"metadata": "none"}}
        self.tree, self.folder = merge(tiny_recipe(store, folder), short), folder
        recipe = validate(Recipe, self.tree, "test")
        self.base, self.data = run(recipe).path, open_data(recipe)
        evaluate_run(self.base, "train")

    def __call__(self, name: str, quality: float, seed: int = 0, **changes: object) -> Path:
        """Make a run whose logits of the true class are `quality` higher than others."""
        path = self.folder / name
        if not path.exists():
            shutil.copytree(self.base, path)
            recipe = validate(Recipe, merge(self.tree, {"name": name, "seed": seed, **changes}), "test")
            (path / "recipe.yaml").write_text(recipe.yaml())
            self.save(path, quality, seed)
        return path

    def save(self, path: Path, quality: float, seed: int, rows: int | None = None) -> None:
        chosen = self.data.split.train[:rows]
        targets = self.data.targets[torch.from_numpy(chosen)]
        generator = torch.Generator().manual_seed(100 + seed)
        logits = torch.randn(len(chosen), len(self.data.space.classes), generator=generator)
        logits += quality * self.data.space.positives(targets)
        result = Evaluation(*score(logits, targets, self.data.space), chosen, logits)
        file = path / "evaluation" / "train.json"
        save_evaluations({"student": result}, self.data, "train", file, {"checkpoint": "best", "step": 4})


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    return Maker(store, tmp_path_factory.mktemp("runs"))


def test_a_better_recipe_is_found_and_an_equal_one_is_not(made):
    base = [made(f"base{seed}", 1.0, seed) for seed in range(3)]
    better = [made(f"better{seed}", 2.5, seed, optimizer={"lr": 0.01}) for seed in range(3)]
    equal = [made(f"equal{seed}", 1.0, seed + 10, optimizer={"lr": 0.02}) for seed in range(3)]
    for seed, path in enumerate(equal):  # other predictions of the same quality
        recipe = validate(Recipe, merge(made.tree, {"name": path.name, "seed": seed, "optimizer": {"lr": 0.02}}), "t")
        (path / "recipe.yaml").write_text(recipe.yaml())
    first, second = compare_runs([*better, *equal], base[::-1], OPTIONS)
    assert (first.recipe, first.runs, first.score) == ("better0", 3, "accuracy")
    assert first.significant and first.low > 0 and first.p < 0.01
    scores = [json.loads((path / "evaluation" / "train.json").read_text()) for path in (*better, *base)]
    values = [one["networks"]["student"]["scores"]["accuracy"] for one in scores]
    assert first.difference == pytest.approx(np.mean(values[:3]) - np.mean(values[3:]))
    assert not second.significant and second.low < 0 < second.high and second.p > 0.05
    assert second.holm >= second.p


def test_a_run_is_no_better_than_itself(made):
    path = made("base0", 1.0, 0)
    found = compare_runs([path], [path], OPTIONS)[0]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_report_prints_bold_only_what_is_better_beyond_chance(made):
    def tables(*recipes):
        views = [(path, read_run(path)) for paths in recipes for path in paths]
        return "".join(score_tables(grouped_runs([report._digest(v, path, group_key(v), []) for path, v in views])))

    base = [made(f"base{seed}", 1.0, seed) for seed in range(3)]
    better = [made(f"better{seed}", 2.5, seed, optimizer={"lr": 0.01}) for seed in range(3)]
    found = tables(base, better)
    assert found.count("<strong>") == 1 and "Bold: better than each other row beyond chance" in found
    row = next(line for line in found.split("<tr>") if "<strong>" in line)
    assert "better* (3 seeds)" in row
    same = [made(f"same{seed}", 1.02, seed, optimizer={"lr": 0.03}) for seed in range(3)]
    found = tables(base, same)
    assert "<strong>" not in found and "No row is bold: the best accuracy is not better" in found
    alone = tables(base[:2], better[1:])
    assert "<strong>" not in alone and "cannot be compared" in alone and "different seeds" in alone
    assert "bold" not in tables(base).lower()


@pytest.mark.slow
def test_a_report_of_fifty_runs_stays_small_soak(made, tmp_path, monkeypatch):
    """Fifty recipes: the page stays below 5 MB, and the runs are read one after the other."""
    paths = [made(f"run{n}", 1.0 + n / 50, 0, optimizer={"lr": 0.001 * (n + 1)}) for n in range(50)]
    arrays, alive = [], []

    def watched(path):
        gc.collect()
        alive.append(sum(array() is not None for array in arrays))
        view = read_run(path)
        arrays.append(weakref.ref(view.arrays["train"]["logits_student"]))
        return view

    monkeypatch.setattr(report, "read_run", watched)
    page = report.write_report(paths, tmp_path / "report.html")
    assert len(alive) == 50 and max(alive) <= 1
    text = page.read_text()
    assert page.stat().st_size < 5_000_000 and text.count("run49") >= 2
    assert "Figures of 38 further recipes are left out" in text


def test_holm_is_its_textbook_example():
    about = ("a", "b", "accuracy", 1, 20, 0.5, 0.5, 0.0, 0.0, 0.0)
    found = _corrected([Difference(*about, p, p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [one.holm for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_runs_that_cannot_be_compared_are_told(made, tmp_path):
    base, other = made("base0", 1.0, 0), made("base1", 1.0, 1)
    with pytest.raises(ConfigError, match=r"different seeds \(1 and 0"):
        compare_runs([other], [base], OPTIONS)
    with pytest.raises(ConfigError, match="one recipe and one seed"):
        compare_runs([base, base], [base], OPTIONS)
    with pytest.raises(ConfigError, match="are of different recipes"):
        compare_runs([base], [base, made("lr", 1.0, 0, optimizer={"lr": 0.05})], OPTIONS)
    with pytest.raises(RunError, match="no scores of test"):
        compare_runs([base], [base], ComparisonOptions())
    with pytest.raises(ConfigError, match=r"unknown score 'mAP'. There are: loss, accuracy"):
        compare_runs([base], [base], ComparisonOptions(part="train", score="mAP"))
    with pytest.raises(ConfigError, match=r"has no teacher. It has: student"):
        compare_runs([base], [base], ComparisonOptions(part="train", network="teacher"))
    with pytest.raises(ConfigError, match=r"lie in \d blocks of 30 degrees, and an interval needs 10"):
        compare_runs([base], [base], ComparisonOptions(part="train", degrees=30))
    split = made("split", 1.0, 0, optimizer={"lr": 0.04})
    made.save(split, 1.0, 0, rows=50)
    with pytest.raises(RunError, match="different train patches"):
        compare_runs([split], [base], OPTIONS)
    record = json.loads((split / "record.json").read_text())
    record["store"]["fingerprint"] = "other"
    (split / "record.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="different stores"):
        compare_runs([split], [base], OPTIONS)
