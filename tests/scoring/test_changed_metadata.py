import numpy as np
import pytest
import torch

from stssl.base.errors import ConfigError
from stssl.base.sphere import on_sphere
from stssl.scoring.changed_metadata import MetadataChange, changed_metadata, parse_change, require_known
from stssl.steps.votes import EARTH_KM

NAN = float("nan")


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    columns = [
        rng.uniform(-80, 80, 200),
        rng.uniform(-180, 180, 200),
        rng.integers(1, 366, 200),
        rng.uniform(0, 24, 200),
    ]
    found = torch.tensor(np.stack(columns, 1), dtype=torch.float32)
    found[::10, :2], found[::15, 2:] = NAN, NAN
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", MetadataChange()),
        ("absent", MetadataChange("absent")),
        ("moved:500km", MetadataChange("moved", 500, "km")),
        ("moved: 12.5 KM", MetadataChange("moved", 12.5, "km")),
        ("moved:90d", MetadataChange("moved", 90, "d")),
        ("moved:90days", MetadataChange("moved", 90, "d")),
    ],
)
def test_changes_are_read_and_written(text, expected):
    assert parse_change(text) == expected
    assert parse_change(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("moved", "moved:500km"),
        ("moved:500", "moved:500km or moved:500d"),
        ("moved:-5km", "is unknown"),
        ("moved:0km", "above 0"),
        ("moved:30000km", "at most at 20000km"),
        ("moved:400d", "at most at 364d"),
        ("moved:5miles", "is unknown"),
        ("gone", "true, absent, shuffled"),
        ("", "true, absent, shuffled"),
    ],
)
def test_what_is_no_change_is_told(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_change(text)


@pytest.mark.parametrize("distance", [1, 500, 5000])
def test_places_move_by_the_distance_and_dates_stay(table, distance):
    moved = changed_metadata(table, parse_change(f"moved:{distance}km"))
    known = ~table[:, 0].isnan()
    angle = (on_sphere(table).double() * on_sphere(moved).double()).sum(1).clamp(-1, 1).arccos()[known]
    # Float32 degrees are exact to about half a kilometer here.
    assert (angle * EARTH_KM - distance).abs().max() < max(4, 0.01 * distance)
    assert torch.equal(moved[:, 2:].nan_to_num(-1), table[:, 2:].nan_to_num(-1))
    assert torch.equal(moved.isnan(), table.isnan())
    assert moved[known, 1].abs().max() <= 180


def test_days_move_through_the_new_year(table):
    moved = changed_metadata(table, parse_change("moved:90d"))
    known = ~table[:, 2].isnan()
    assert ((moved[known, 2] - table[known, 2]) % 365 == 90).all()
    assert moved[known, 2].min() >= 1 and moved[known, 2].max() <= 365
    assert torch.equal(moved[:, :2].nan_to_num(-1), table[:, :2].nan_to_num(-1))


def test_shuffled_rows_are_others_whole(table):
    shuffled = changed_metadata(table, parse_change("shuffled"))
    key = [str(row) for row in table.tolist()]
    assert sorted(map(str, shuffled.tolist())) == sorted(key)
    there = ~table.isnan().all(1)
    assert not any(str(one) == key[row] for row, one in enumerate(shuffled.tolist()) if there[row])
    assert torch.equal(changed_metadata(table, parse_change("shuffled")).nan_to_num(-1), shuffled.nan_to_num(-1))
    assert changed_metadata(table, parse_change("absent")).isnan().all()


def test_there_must_be_something_to_change(table):
    table[:, :2] = NAN
    with pytest.raises(ConfigError, match="no test patch has a place, so moved:5km would change nothing"):
        require_known(table, parse_change("moved:5km"), "test")
    require_known(table, parse_change("moved:5d"), "test")
    require_known(table, parse_change("absent"), "test")
