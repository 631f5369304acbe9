import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score
from tiny import tiny_bigearthnet, tiny_recipe

from stssl.analysis.comparison import ComparisonOptions, compare_runs
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, DataError, RunError
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data
from stssl.scoring import groups
from stssl.scoring.evaluation import Evaluation
from stssl.scoring.group_columns import has_value
from stssl.scoring.group_files import read_groups, save_groups
from stssl.scoring.groups import GroupOptions, check_options, score_groups
from stssl.scoring.metrics import score


@pytest.fixture(scope="module")
def single(store, tmp_path_factory):
    tree = tiny_recipe(store, tmp_path_factory.mktemp("runs"))
    return open_data(validate(Recipe, tree, "test"))


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    changes = {
        "data": {"labels": "labels_43", "scale": "sigmas"},
        "labels": {"per_class": None, "fraction": 1.0, "allow_missing_classes": True},
    }
    tree = merge(tiny_recipe(tiny_bigearthnet(folder), folder), changes)
    return open_data(validate(Recipe, tree, "test"))


def evaluation(data, part="train", seed=0):
    rows = data.split.part(part)
    logits = torch.randn(len(rows), len(data.space.classes), generator=torch.Generator().manual_seed(seed))
    chosen = data.targets[torch.from_numpy(rows)]
    logits += 2 * data.space.positives(chosen)
    found = score(logits, chosen, data.space)
    return Evaluation(found.scores, found.per_class, rows, logits)


def test_groups_have_scikit_learns_scores(multi):
    result = evaluation(multi)
    found = score_groups({"student": result}, multi, GroupOptions(("country", "season", "month"), least=1))
    values = multi.store.column("country")[result.rows]
    rows = [row for row in found.rows if (row.column, row.score) == ("country", "mAP")]
    assert len(rows) > 1
    targets = multi.targets[torch.from_numpy(result.rows)].numpy()
    for row in rows:
        own = values == row.group
        if row.group != "others":
            there = targets[own].any(0)
            expected = average_precision_score(targets[own][:, there], result.logits.numpy()[own][:, there])
            assert (row.patches, row.value) == (own.sum(), pytest.approx(expected))
    assert sum(row.patches for row in rows) == len(result.rows)
    counts = {row.group: row.patches for row in rows}
    least = max(counts.values())
    pooled = score_groups({"student": result}, multi, GroupOptions(("country",), least=least))
    kept = {row.group for row in pooled.rows if row.column == "country"}
    assert kept == {name for name, count in counts.items() if count >= least} | {"others"}
    assert any(note.startswith(f"country: groups with fewer than {least} labeled") for note in pooled.notes)
    # The pool would be the best or the worst group here or there, but it is no country.
    assert not {"others"} & {name for one in (*found.worst, *pooled.worst) for name in (one.worst, one.best)}
    worst = next(one for one in found.worst if one.column == "country")
    assert worst.value == min(row.value for row in rows)
    assert worst.gap == pytest.approx(max(row.value for row in rows) - worst.value)


def test_single_label_groups_and_the_whole_part(single):
    result = evaluation(single)
    found = score_groups({"student": result}, single, GroupOptions(("block", "label"), 200, least=5, degrees=0.5))
    whole = [row for row in found.rows if row.column == "all"]
    assert {row.score: row.value for row in whole} == result.scores
    for row in whole:
        assert row.low <= row.value <= row.high or row.score == "calibration_error"
    truth, choice = single.targets[torch.from_numpy(result.rows), 0].numpy(), result.logits.argmax(1).numpy()
    label = next(row for row in found.rows if (row.column, row.score) == ("label", "accuracy"))
    own = truth == single.space.classes.index(label.group)
    assert label.value == pytest.approx(accuracy_score(truth[own], choice[own]))
    assert any("only" in note and "no interval" in note for note in found.notes)  # blocks within one block


def test_intervals_of_single_patches_are_another_thing(single):
    result = evaluation(single)
    one, other = (
        score_groups({"student": result}, single, GroupOptions((), 200, resample=kind))
        for kind in ("blocks", "patches")
    )
    assert one.rows[0].blocks < other.rows[0].blocks == len(result.rows)
    assert "too short" in other.notes[0] and "blocks of 1 degrees" in one.notes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": ("county",)}, r"no column 'county'. It has: block, month, .*country.*season"),
        ({"by": ("labels_43",)}, "labels_43 is no column of groups"),
        ({"by": ("lat",)}, "lat is no column of groups"),
        ({"bootstrap": 20}, "100 draws or more"),
        ({"bootstrap": 1000, "degrees": 90.0}, r"lie in \d blocks of 90 degrees, and an interval needs 10"),
    ],
)
def test_what_cannot_be_grouped_is_told(multi, options, words):
    with pytest.raises(ConfigError, match=words):
        check_options(multi, "train", GroupOptions(**options))


def test_a_group_without_labels_is_told(single):
    result = evaluation(single)
    targets = single.targets.clone()
    cells = np.floor(single.metadata[:, 0].numpy()) < 47
    targets[torch.from_numpy(cells)] = -1
    data = type(single)(**(vars(single) | {"targets": targets}))
    found = score_groups({"student": result}, data, GroupOptions(("block",), least=1))
    assert any("has a label: no scores" in note for note in found.notes)
    assert next(row for row in found.rows if row.column == "all").patches < len(result.rows)


def test_files_come_back(single, tmp_path):
    result, options = evaluation(single), GroupOptions(("month",), 100)
    found = score_groups({"student": result, "teacher": evaluation(single, seed=1)}, single, options)
    save_groups(found, options, tmp_path / "test-groups", {"part": "test"})
    assert list(read_groups(tmp_path / "test-groups")) == found.rows
    content = json.loads((tmp_path / "test-groups.json").read_text())
    assert content["part"] == "test" and content["options"]["bootstrap"] == 100
    assert [row["value"] for row in content["rows"]] == [row.value for row in found.rows]
    table = pyarrow.parquet.read_table(tmp_path / "test-groups.parquet")
    assert set(table["network"].to_pylist()) == {"student", "teacher"}
    (tmp_path / "test-groups.parquet").write_bytes(b"no table")
    with pytest.raises(RunError, match="Evaluate the run again"):
        read_groups(tmp_path / "test-groups")
    with pytest.raises(RunError, match="--by COLUMN"):
        read_groups(tmp_path / "other")


def test_an_empty_part_has_no_groups(single):
    from dataclasses import replace

    data = replace(single, split=replace(single.split, test=np.zeros(0, np.int64)))
    with pytest.raises(DataError, match="no test patches"):
        check_options(data, "test", GroupOptions(("block",)))


def test_a_group_that_is_called_others_is_not_the_pool_of_small_groups():
    values = np.array(["Finland"] * 40 + ["others"] * 50 + ["tiny"] * 3)
    notes = []
    pooled, pool = groups._pooled(values, np.ones(len(values), bool), "land", GroupOptions(("land",)), notes)
    found = dict(zip(*np.unique(pooled, return_counts=True), strict=True))
    assert found == {"Finland": 40, "others": 50, "others (pooled)": 3} and pool == "others (pooled)"
    assert "are pooled as others (pooled): tiny (3)" in notes[0]
    without = values[values != "others"]  # the control: the name is free
    assert groups._pooled(without, np.ones(len(without), bool), "land", GroupOptions(("land",)), notes)[1] == "others"


@pytest.mark.parametrize("degrees", [float("nan"), float("inf"), 0.0, -1.0])
def test_blocks_without_a_side_are_refused(multi, degrees):
    with pytest.raises(ConfigError, match="--degrees: give the side of a block"):
        groups.check_options(multi, "train", GroupOptions(("country",), degrees=degrees))
    with pytest.raises(ConfigError, match="--degrees: give the side of a block"):
        compare_runs(["a"], ["b"], ComparisonOptions(degrees=degrees))


def test_another_word_for_what_is_drawn_is_refused(multi):
    with pytest.raises(ConfigError, match="--resample 'patch': give blocks or patches"):
        groups.check_options(multi, "train", GroupOptions(("country",), resample="patch"))
    groups.check_options(multi, "train", GroupOptions(("country",), resample="patches"))  # the control


def test_a_missing_value_is_no_value_of_a_column(multi):
    cases = (
        (np.array(["", "Finland"]), {}),
        (np.array([-1, 0]), {"classes": ["a", "b"]}),
        (np.array([9, 0]), {"missing": 9}),
    )
    for values, attributes in cases:
        column = SimpleNamespace(column=lambda name, v=values: v, column_attributes=lambda name, a=attributes: a)
        assert has_value(column, "land").tolist() == [False, True]
    plain = SimpleNamespace(column=lambda name: np.array([-1, 0]), column_attributes=lambda name: {})
    assert has_value(plain, "land").all()  # the control: such numbers are values
    assert has_value(multi.store, "country").all()
