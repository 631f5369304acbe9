import json
import pickle
import shutil

import numpy as np
import pytest
import tiny
import torch

from stssl.archives.nomenclature import EUROSAT
from stssl.base.errors import ConfigError, DataError
from stssl.recipes.build import build_pixels
from stssl.recipes.run_data import open_pixels
from stssl.recipes.sections import DataConfig
from stssl.store.description import describe_store
from stssl.store.store import Store


def test_what_is_in_a_store(store):
    opened = Store.open(store)
    assert (opened.size, opened.bands) == (200, ("B04", "B03", "B02"))
    assert opened.split_names == ("official", "published")
    official, published = opened.column("split_official"), opened.column("split_published")
    assert (published == np.where(official == 1, 0, official)).all() and (official == 1).any()
    assert opened.classes("label") == EUROSAT
    assert not opened.multilabel("label")
    assert opened.groups["rgb"].dtype == np.uint8
    assert opened.column("lat") is opened.column("lat")
    assert opened.has_column("time")
    assert not opened.has_column("rgb")


def test_statistics_follow_the_order_asked_for(store):
    opened = Store.open(store)
    mean, std = opened.statistics(["B02", "B04"])
    again, _ = opened.statistics(["B04", "B02"])
    assert mean.tolist() == again[::-1].tolist()
    assert (std > 0).all()
    with pytest.raises(DataError, match=r"has no statistics of B08"):
        opened.statistics(["B08"])


def test_an_unknown_column_names_those_there_are(store):
    with pytest.raises(DataError, match=r"has no column 'altitude'. It has: content_hash, day_of_year, error_code"):
        Store.open(store).column("altitude")


def test_a_fingerprint_is_of_pixels_and_labels(store, tmp_path):
    first = Store.open(store).fingerprint
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    assert Store.open(copy).fingerprint == first
    tiny.relabel(copy, 3, 7)
    assert Store.open(copy).fingerprint != first


def change(store, **attributes):
    path = store / "zarr.json"
    group = json.loads(path.read_text())
    group["attributes"].update(attributes)
    path.write_text(json.dumps(group))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"complete": False}, r"was not finished. Run the same `stssl convert` again"),
        ({"schema_version": 99}, r"has schema version 99, and this program reads 1"),
        ({"schema_version": None}, r"is a Zarr group, but not a store of stssl"),
    ],
)
def test_stores_that_are_not_whole_or_of_another_kind_are_refused(changes, words, store, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    change(copy, **changes)
    with pytest.raises(DataError, match=words):
        Store.open(copy)


def test_no_store_there(tmp_path):
    with pytest.raises(DataError, match=r"there is no store at .*nowhere. Make one with `stssl convert`"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is not a Zarr store"):
        Store.open(tmp_path)


def test_a_store_and_its_reader_can_be_pickled(store):
    opened = Store.open(store)
    reader = pickle.loads(pickle.dumps(opened.reader(opened.bands)))
    assert reader.read(np.array([5]))["rgb"].shape == (1, 3, 64, 64)


def test_direct_and_zarr_reads_agree(store):
    opened, rows = Store.open(store), np.array([199, 0, 0, 64, 63])
    for bands in (["B03"], ["B04", "B02"], opened.bands):
        direct, plain = (opened.reader(bands, direct=direct).read(rows)["rgb"] for direct in (True, False))
        np.testing.assert_array_equal(direct, plain)


def test_a_description_has_all_that_matters(store):
    text = describe_store(Store.open(store))
    for words in ("200 patches", "B04 B03 B02: 64x64 uint8", "140 train, 20 validation, 40 test", "20  Forest", "none"):
        assert words in text
    assert "latitude 45." in text


def test_a_band_of_one_value_is_told_and_seen_as_zero(store, caplog):
    config = DataConfig(store=str(store), labels="label")
    data = open_pixels(config)
    (group,) = data.store.groups.values()
    group.statistics["std"][1] = 0.0
    group.statistics["mean"][1] = 120.0
    pixels = build_pixels(config, 64, data, torch.contiguous_format)
    assert "data.bands: B03 has the same value in all training pixels" in caplog.text
    images = pixels({name: torch.full((1, 3, 64, 64), 120.0) for name in data.reader.layout})
    assert (images[:, 1] == 0).all() and torch.isfinite(images).all()


def test_control_bands_that_vary_are_not_told(store, caplog):
    config = DataConfig(store=str(store), labels="label")
    build_pixels(config, 64, open_pixels(config), torch.contiguous_format)
    assert "same value" not in caplog.text


def test_published_statistics_are_taken_where_a_store_has_them(store, big_store):
    known = Store.open(big_store).published_statistics()
    assert known["B04"] == (590.23569706, 675.88746967) and len(known) == 12
    config = DataConfig(store=str(big_store), bands=("B03", "B02"), statistics="published")
    pixels = build_pixels(config, 64, open_pixels(config), torch.contiguous_format)
    low, width = 614.21682446 - 2 * 582.87945694, 4 * 582.87945694
    assert pixels.low[0, 0].item() == pytest.approx(low) and pixels.width[0, 0].item() == pytest.approx(width)
    own = config.model_copy(update={"statistics": "store"})
    own = build_pixels(own, 64, open_pixels(config), torch.contiguous_format)
    assert own.low[0, 0].item() != pytest.approx(low)  # the control
    config = DataConfig(store=str(store), labels="label", statistics="published")
    with pytest.raises(ConfigError, match=r"data\.statistics: .* holds no published statistics of B04, B03, B02"):
        build_pixels(config, 64, open_pixels(config), torch.contiguous_format)
