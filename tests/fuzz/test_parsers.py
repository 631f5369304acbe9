"""Each parser of foreign files takes damaged ones: it succeeds, or says in words which file is wrong.

200 inputs each (`FUZZ_INPUTS` for more), seeded: an input's number in a finding reproduces it.
"""

import argparse
import bz2
import gzip
import json
import random
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from fuzz import mutations as m
from fuzz.harness import INPUTS, Target, fuzz
from PIL import Image
from safetensors.torch import save_file

from stssl.analysis.report import _digest, write_report
from stssl.analysis.run_views import read_run
from stssl.analysis.score_tables import record_table
from stssl.archives.bigearthnet import BigEarthNet1, read_patch_json
from stssl.archives.conversion import Options, convert_archive
from stssl.archives.eurosat import EuroSat, read_coordinates
from stssl.archives.manifest import Manifest
from stssl.archives.split_lists import find_split
from stssl.archives.synthetic import synthesize_archive
from stssl.archives.tables import read_table
from stssl.base.config import apply_overrides, load_tree, validate
from stssl.base.errors import StsslError
from stssl.data.splits import ListSplit, make_split
from stssl.models.backbones import make_backbone
from stssl.models.weight_sources import open_file
from stssl.recipes.pretraining import PretrainRecipe, kind_of
from stssl.recipes.recipe import Recipe, load_as
from stssl.store.schema import BadPatchError, Patch
from stssl.store.store import Store
from stssl.sweeps.domains import build_space
from stssl.sweeps.spec import load_sweep
from stssl.sweeps.trials import outcome
from stssl.training.checkpoints import read_state
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.trained_run import evaluate_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0), pytest.mark.filterwarnings("ignore")]


def check(target, name):
    found = fuzz(target)
    sys.stdout.write("\n".join([f"{name}: {INPUTS} inputs: {found}", *found.findings, ""]))
    sys.stdout.flush()
    assert found.findings == [], "\n".join([str(found), *found.findings])
    assert found.accepted and found.refused, found


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    """100 patches, in shards of 32."""
    folder = tmp_path_factory.mktemp("small")
    archive, table = tiny.write_eurosat(folder, 10)
    convert_archive("eurosat", archive, folder / "small.zarr", Options(workers=0, shard=32), coordinates=table)
    return folder / "small.zarr"


@pytest.fixture
def recipes(small_store, tmp_path):
    """A training and a pretraining recipe, the first with a base."""
    tree = tiny.tiny_recipe(small_store, tmp_path / "runs")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({key: tree.pop(key) for key in ("model", "schedule", "batch")}))
    tree["data"]["split"] = {"name": "blocks", "degrees": 0.5}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({"base": "base.yaml"} | tree, sort_keys=False))
    keep = {key: tree[key] for key in ("name", "data", "evaluation", "launch", "compute", "logging")}
    model = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 8, 8, 8]}, "image_size": 16}
    pretrain = keep | {"model": model, "pretext": {"queue": 32}, "schedule": {"steps": 8, "warmup": 1}}
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(pretrain, sort_keys=False))
    return tmp_path


def test_recipes(recipes):
    def parse(path):
        if path.name == "pretrain.yaml":
            recipe = load_as(PretrainRecipe, path)
        else:
            recipe = load_as(Recipe, recipes / "train.yaml")
        again = recipe.yaml()
        (recipes / "again.yaml").write_text(again)
        tree = load_tree(recipes / "again.yaml")
        assert validate(kind_of(tree), tree, "again") == recipe, "what is written reads back as something else"

    files = tuple(recipes / name for name in ("train.yaml", "base.yaml", "pretrain.yaml"))
    for path in files:
        parse(path)
    names = lambda path: (path.name, "train.yaml")  # noqa: E731  a base's keys are the naming file's
    check(Target(files, parse, (*m.TEXT, m.tree_in_yaml, m.tree_in_yaml, m.tree_in_yaml), names), "recipes")


def test_a_changed_value_is_told_with_its_key(recipes):
    """Where a recipe with one changed value is refused, the message has the line, or the key or one above or below."""
    tree, misses, refused = yaml.safe_load((recipes / "pretrain.yaml").read_text()), [], 0
    for number in range(INPUTS):
        dice = random.Random(number)
        section = dice.choice([key for key, value in tree.items() if isinstance(value, dict)])
        key = dice.choice(list(tree[section]))
        path = recipes / "one.yaml"
        part = {**tree[section], key: m._value(dice)}
        path.write_text(yaml.safe_dump({**tree, section: part}))
        try:
            load_as(PretrainRecipe, path)
        except StsslError as error:
            refused += 1
            text = str(error)
            if "one.yaml" not in text or not ("line " in text or section in text or key in text):
                misses.append(f"{number}: {section}.{key}: {text}")
    assert not misses and refused > INPUTS // 3, (misses, refused)


def test_overrides(recipes):
    file = recipes / "override"
    file.write_text("optimizer.lr=1e-3")

    def parse(path):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        validate(Recipe, apply_overrides(load_tree(recipes / "train.yaml"), [text]), "train.yaml")

    check(Target((file,), parse, m.TEXT, lambda path: ("override", "train.yaml")), "overrides")


def test_sweeps(recipes):
    sweep = {
        "recipe": "train.yaml",
        "metric": "accuracy",
        "trials": 6,
        "storage": str(recipes / "sweeps"),
        "change": {"seed": 3, "schedule.steps": 12},
        "scheduler": {"name": "asha", "grace": 4, "reduction": 2},
        "sampler": {"name": "grid"},
        "points": [{}, {"algorithm.threshold": 0.5}],
        "search": {
            "algorithm.threshold": {"low": 0.3, "high": 0.9, "step": 0.1},
            "optimizer.lr": [0.001, 0.01],
            "model.injection.name": ["late", "film"],
        },
    }
    (recipes / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))

    def parse(path):
        what = load_sweep(recipes / "s.yaml")
        space = build_space(what.config, what.recipe)
        for number, point in enumerate(what.config.points):
            space.point(point, f"s.yaml: points[{number}]")
        if what.config.sampler.name == "grid":
            space.grid()

    files = (recipes / "s.yaml", recipes / "s.yaml", recipes / "s.yaml", recipes / "train.yaml")
    parse(files[0])
    names = lambda path: ("s.yaml", "train.yaml", "search", "points")  # noqa: E731  these keys are a sweep's only
    check(Target(files, parse, (*m.TEXT, m.tree_in_yaml, m.tree_in_yaml, m.tree_in_yaml), names), "sweeps")


def test_manifests(tmp_path):
    dice = np.random.default_rng(0)
    lines = ["path,label,lat,lon,time,split,location_id"]
    for number in range(6):
        Image.fromarray(dice.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"i{number}.png")
        lines.append(f"i{number}.png,c{number % 2},{40 + number},{5 + number},2020-0{number + 1}-01,train,p{number}")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    truth = {name: Image.open(tmp_path / name).getpixel((3, 4)) for name in (f"i{n}.png" for n in range(6))}

    def parse(path):
        archive = Manifest(tmp_path / "m.csv")
        for row, name in enumerate(archive.names):
            for values in archive.read(row).arrays.values():
                known = truth.get(Path(name).name)
                assert path.suffix == ".png" or known is None or tuple(values[:, 4, 3].tolist()) == known

    files = (tmp_path / "m.csv", tmp_path / "m.csv", tmp_path / "i0.png")
    names = lambda path: ("m.csv", "images", "i0.png")  # noqa: E731  "none of the first images can be read"
    check(Target(files, parse, (*m.TEXT, m.with_cell, m.with_cell, m.with_cell), names), "manifests")


def test_patch_json(tmp_path):
    about = {
        "labels": ["Pastures", "Mixed forest"],
        "coordinates": {"ulx": 300000, "uly": 5400000, "lrx": 301200, "lry": 5398800},
        "projection": 'PROJCS["WGS 84 / UTM zone 33N",AUTHORITY["EPSG","32633"]]',
        "acquisition_date": "2017-06-13 10:10:31",
    }
    file = tmp_path / "p_labels_metadata.json"
    file.write_text(json.dumps(about))

    def parse(path):
        patch = Patch()
        read_patch_json(patch, path)
        return patch

    kinds = (*m.TEXT, m.tree_in_json, m.tree_in_json, m.tree_in_json)
    check(Target((file,), parse, kinds, expected=(StsslError, BadPatchError)), "patch JSON")


def test_zips(tmp_path):
    archive, table = tiny.write_eurosat(tmp_path / "x", 1)
    with zipfile.ZipFile(tmp_path / "e.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(archive.rglob("*.jpg"))[:4]:
            packed.write(file, f"2750/{file.relative_to(archive)}")
    places = tmp_path / "places.csv"
    places.write_bytes(table.read_bytes())

    def values():
        found = EuroSat(tmp_path / "e.zip")
        patches = [found.read(row) for row in range(len(found.names))]
        return {name: patch for name, patch in zip(found.names, patches, strict=True) if not patch.problems}

    truth = values()

    def parse(path):
        if path == places:
            return read_coordinates(places)
        for name, patch in values().items():
            if name in truth:
                assert (patch.arrays["rgb"] == truth[name].arrays["rgb"]).all(), f"other pixels of {name}"
                assert patch.values["label"] == truth[name].values["label"]
        return None

    files = (tmp_path / "e.zip", tmp_path / "e.zip", tmp_path / "e.zip", places)
    check(Target(files, parse, (*m.BYTES, m.flipped_at_the_end, m.flipped_at_the_end, m.with_cell)), "zips")


def _contents(path):
    """All pixels and columns of a store, by name."""
    store = Store.open(path)
    found = {}
    for direct in (True, False):
        reader = store.reader(store.bands, direct=direct)
        try:
            rows = np.arange(store.size) if direct else np.array([0, store.size - 1])  # zarr takes its time
            found |= {f"{name} {direct}": pixels for name, pixels in reader.read(rows).items()}
        finally:
            reader.close()
    for name in ("label", "lat", "lon", "patch_id", "split_official", "content_hash", "error_code"):
        found[name] = store.column(name)
    store.statistics(store.bands)
    store.classes("label")
    store.multilabel("label")
    store.about()
    make_split(store, "official")
    return found


def _same_or_error(small_store, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(small_store, copy)
    truth = _contents(copy)

    def parse(path):
        found = _contents(copy)
        for name, values in truth.items():
            same = name in found and np.array_equal(found[name], values, equal_nan=values.dtype.kind == "f")
            assert same, f"other values of {name} in silence"

    parse(copy)
    return copy, parse


@pytest.mark.parametrize("kind", ["Zarr metadata", "Zarr metadata of each array", "Zarr metadata of an older store"])
def test_zarr_metadata(small_store, tmp_path, kind):
    """The root's file has a copy of all others, which counts; without it each array's own does.

    Older stores have nothing to compare a description with: it is of the right types and sizes, or an error.
    """
    copy, parse = _same_or_error(small_store, tmp_path)
    root, consolidated = copy / "zarr.json", kind == "Zarr metadata"
    tree = json.loads(root.read_text())
    if not consolidated:
        del tree["consolidated_metadata"]
    if kind == "Zarr metadata of an older store":
        del tree["attributes"]["description_hashes"]
        parse = lambda path: _contents(copy)  # noqa: E731
    root.write_text(json.dumps(tree))
    parse(root)
    files = tuple(sorted(copy.rglob("zarr.json")))
    assert len(files) > 5
    files += (root,) * (len(files) if consolidated else len(files) // 5)
    kinds = (*m.TEXT, m.tree_in_json, m.tree_in_json, m.tree_in_json)
    check(Target(files, parse, kinds, lambda path: ("copy.zarr",)), kind)


def test_shard_indexes(small_store, tmp_path):
    copy, parse = _same_or_error(small_store, tmp_path)
    files = tuple(path for path in sorted(copy.rglob("c/*")) if path.is_file())
    files += tuple(path for path in sorted(copy.rglob("c/**/*")) if path.is_file())
    kinds = (*m.BYTES, m.flipped_at_the_end, m.flipped_at_the_end, m.flipped_at_the_end)
    check(Target(files, parse, kinds, lambda path: ("copy.zarr",)), "shard indexes")


@pytest.fixture(scope="module")
def finished_run(small_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tree = tiny.tiny_recipe(small_store, folder)
    tree |= {"data": tree["data"] | {"split": "official"}, "labels": {"fraction": 1.0}}
    recipe = validate(Recipe, tree, "x")
    run(recipe)
    evaluate_run(folder / "run", "test")
    return folder / "run", recipe


def test_run_files(finished_run, small_store, tmp_path):
    source, recipe = finished_run
    path = tmp_path / "run"
    shutil.copytree(source, path, symlinks=True)
    recipe = recipe.model_copy(update={"launch": recipe.launch.model_copy(update={"storage": str(tmp_path)})})
    store = Store.open(small_store)

    def parse(file):
        folder = RunFolder.existing(path)
        folder.recipe()
        folder.finished()
        folder.refuse_others(recipe)
        folder.require_store(store)
        list(folder.rows())
        outcome(path, ("accuracy",))
        if file.parent.name == "checkpoints":
            read_state(file)
        view = read_run(path)
        if file.name == "record.json":  # a page takes a second to draw
            page = record_table([_digest(view, "", "run-0", [])])
            assert "<script>" not in page, "markup from a file reaches the page"

    run(recipe)  # a run that ended stays as it is
    write_report([path], tmp_path / "report.html")
    names = ("recipe.yaml", "record.json", "done.json", "metrics.jsonl", "labels.json")
    files = [path / name for name in names] + [*(path / "evaluation").iterdir()]
    files += [file for file in (path / "checkpoints").iterdir() if file.suffix == ".pt" and not file.is_symlink()]
    kinds = (*m.TEXT, m.tree_in_json, m.tree_in_json, m.row_in_json, m.tree_in_yaml)
    check(Target(tuple(files), parse, kinds, lambda file: (file.name, str(path))), "run files")


def test_split_lists(small_store, tmp_path):
    store = Store.open(small_store)
    names = store.column("patch_id").tolist()
    lists = {"train.txt": names[:12], "val.csv": names[12:16], "test.csv.gz": names[16:], "more.txt.bz2": names[:3]}
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}
    for name, listed in lists.items():
        text = "".join(f"{one},x\n" if ".csv" in name else f"{one}\n" for one in listed).encode()
        (tmp_path / name).write_bytes(pack.get(Path(name).suffix, bytes)(text))
    (tmp_path / "metadata.csv").write_text("patch_id,country\n" + "".join(f"{name},Austria\n" for name in names))
    known = frozenset(names)

    def parse(path):
        if path.name == "metadata.csv":
            return read_table(path)
        places = {
            part: str(tmp_path / name) for part, name in zip(("train", "validation", "test"), lists, strict=False)
        }
        places |= {"train": str(path)} if path.name == "more.txt.bz2" else {}
        split = make_split(store, ListSplit(name="lists", **places))
        found = find_split([tmp_path])
        assert found and set(known) & found["test"], "names that the list does not have"
        return split

    check(Target(tuple(tmp_path / name for name in (*lists, "metadata.csv")), parse, m.TEXT), "split lists")


def test_archive_tables(tmp_path):
    """Tables and lists beside an archive of BigEarthNet."""
    archive = synthesize_archive(tmp_path / "archive", patches=4, seed=1)
    first = BigEarthNet1(archive)
    (tmp_path / "metadata.csv").write_text("patch_id,country\n" + "".join(f"{name},Austria\n" for name in first.names))
    names = list(first.names)
    for part, listed in (("train", names[:2]), ("val", names[2:3]), ("test", names[3:])):
        (tmp_path / f"{part}.csv").write_text("\n".join(listed))

    def parse(path):
        BigEarthNet1(archive, metadata=tmp_path / "metadata.csv", splits={"mine": tmp_path})

    files = tuple(tmp_path / name for name in ("metadata.csv", "train.csv", "test.csv"))
    check(
        Target(files, parse, (*m.TEXT, m.with_cell, m.with_cell), lambda path: (path.name, str(tmp_path))),
        "archive tables",
    )


def test_weights(tmp_path):
    """Files of weights in the three formats: safetensors, and both formats of `torch.save`."""
    options = {"layers": [1, 1, 1, 1], "channels": [2, 2, 2, 2], "stem_width": 2}
    network = make_backbone("resnet18", options, size=32, in_channels=3, classes=2, hub=False)
    state = network.state_dict()
    wrapped = {"state_dict": {f"module.encoder_q.{name}": value for name, value in state.items()}}
    wrapped |= {"args": argparse.Namespace(lr=0.1), "loss": np.float64(1)}
    torch.save(wrapped, tmp_path / "new.pth")
    torch.save(wrapped, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "some.safetensors")

    def parse(path):
        found = open_file(str(path))
        assert found.tensors, "a file without tensors is taken for weights"
        assert all(isinstance(value, torch.Tensor) for value in found.tensors.values())

    files = tuple(tmp_path / name for name in ("new.pth", "old.pth", "some.safetensors"))
    for path in files:
        parse(path)
    check(Target(files, parse, m.BYTES), "weights")
