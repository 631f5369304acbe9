"""A prediction on several machines equals one in this process, also if a machine dies in the middle."""

import sys
from pathlib import Path

import numpy as np
import pytest
from processes import finish, start
from scenes import write_tif

import stssl
from stssl.mapping import blocks


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_of_one_of_four_nodes_changes_no_byte_of_the_map(plain, tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 255, (3, 1000, 800), np.uint8)
    scene = write_tif(tmp_path / "scene.tif", values, ("B04", "B03", "B02"))
    script = Path(__file__).with_name("four_nodes.py")
    out = tmp_path / "map.tif"
    code, said = finish(start(sys.executable, str(script), str(plain.run.path), str(scene), str(out)), 400)
    assert code == 0 and "removed a node after" in said and "the node is dead" in said, said
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 100)
    here = stssl.predict(plain.run, scene, tmp_path / "here.tif", stride=8, progress=False)
    assert here.read_bytes() == out.read_bytes()
