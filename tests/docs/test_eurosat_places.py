"""EuroSAT's table of places is made from the multispectral images, as the tutorial says."""

import re
from pathlib import Path

import numpy as np

import stssl
from stssl.archives.registry import ARCHIVES

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "eurosat.md"


def test_the_tutorial_makes_the_table_of_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ms", "rgb"):
        (tmp_path / name).mkdir()
    located = ARCHIVES["eurosat-ms"].write_example(tmp_path / "ms")
    stssl.convert("eurosat-ms", located.archive, "eurosat_ms.zarr", progress=False)
    (script,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(script, {})
    images = ARCHIVES["eurosat"].write_example(tmp_path / "rgb")
    stssl.convert("eurosat", images.archive, "rgb.zarr", coordinates=Path("eurosat_latlon.csv"), progress=False)
    places = [
        {name: store.column(name) for name in ("patch_id", "lat", "lon")}
        for store in map(stssl.open_store, ("eurosat_ms.zarr", "rgb.zarr"))
    ]
    for name in ("lat", "lon"):
        known = dict(zip(places[0]["patch_id"], places[0][name], strict=True))
        assert np.allclose([known[patch] for patch in places[1]["patch_id"]], places[1][name])
    stssl.convert("eurosat", images.archive, "none.zarr", progress=False)
    assert np.isnan(stssl.open_store("none.zarr").column("lat")).all()  # control: places come from the table alone
