"""Runs whose predictions stop being finite: no score, no best checkpoint, and words."""

import json

import pytest
import torch
from rich.console import Console

from stssl.analysis.report import write_report
from stssl.api.progress import score_table
from stssl.base.config import merge, validate
from stssl.base.errors import RunError
from stssl.recipes.recipe import Recipe
from stssl.scoring.metrics import diverged, score
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.state import RunProgress
from stssl.training.trained_run import evaluate_run

NAN = float("nan")
HOT = {"optimizer": {"lr": 1e25}, "compute": {"nonfinite_steps": 1000}}


def taken(scores, patience=None):
    """Which of these validation scores, one a step, were the best when they came; where patience ended."""
    progress, better = RunProgress(), []
    for progress.step, value in enumerate(scores, 1):
        better.append(progress.better(value))
        if progress.exhausted(patience):
            break
    return better, progress.best, progress.best_step


def test_scores_that_are_not_finite_are_never_the_best():
    assert taken([NAN, NAN]) == ([False, False], None, 0)
    assert taken([NAN, 0.2, NAN, 0.3, 0.1]) == ([False, True, False, True, False], 0.3, 4)
    assert taken([None, None]) == ([True, True], None, 2)  # nothing to choose by: the newest


def test_patience_ends_runs_without_any_score():
    assert len(taken([NAN] * 9, patience=3)[0]) == 3
    assert len(taken([None] * 9, patience=3)[0]) == 9
    assert len(taken([0.1] + [NAN] * 9, patience=3)[0]) == 4


def test_a_run_without_finite_predictions_ends_in_words(recipe_tree):
    recipe = validate(Recipe, merge(recipe_tree, HOT), "test")
    for _ in range(2):  # the same command says the same
        with pytest.raises(RunError, match=r"no best checkpoint\. Lower optimizer\.lr"):
            run(recipe)
    folder = RunFolder.of(recipe)
    rows = [row for row in folder.rows() if row["kind"] == "validation"]
    assert len(rows) == 3 and {row["accuracy"] for row in rows} == {row["loss"] for row in rows} == {None}
    assert "NaN" not in (folder.path / "metrics.jsonl").read_text()
    assert not folder.checkpoints.path("best").exists() and folder.finished() is None
    with pytest.raises(RunError, match="no best checkpoint: no validation had finite"):
        evaluate_run(folder.path, "validation")
    result = evaluate_run(folder.path, "validation", checkpoint="last")
    console = Console(width=80)
    with console.capture() as shown:
        console.print(score_table(result, "validation"))
    assert "nan" not in shown.get() and " - " in shown.get()
    kept = json.loads((folder.path / "evaluation" / "validation.json").read_text())
    assert set(kept["networks"]["student"]["scores"].values()) == {None}
    assert "nan" not in write_report([folder.path], folder.path / "r.html").read_text().lower().split("<svg")[0]


def test_near_unanimous_neighbors_stay_ranked():
    from stssl.base.labels import LabelSpace
    from stssl.scoring.knn import vote

    space = LabelSpace(("a",), True)
    bank = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.05], [-1.0, 0.6]]), dim=1)
    query = torch.tensor([[1.0, 0.02], [1.0, 0.3], [1.0, 0.6]])
    logits = vote(query, bank, torch.tensor([[1], [0], [0]]), space, k=3, temperature=0.07)
    assert (logits[:-1] > logits[1:]).all()
    broken = vote(query * torch.nan, bank, torch.tensor([[1], [0], [0]]), space, k=3, temperature=0.07)
    assert diverged(score(broken, torch.tensor([[1], [0], [1]]), space)[0])
