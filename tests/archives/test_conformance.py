"""What holds for every registered archive format, tried on the example that the format writes itself."""

import pickle
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stssl.archives.base import Example
from stssl.archives.conversion import Options, Summary, convert_archive, open_archive, verify_store
from stssl.archives.options import FormatOption, all_options, named_folders, options_of
from stssl.archives.registry import ARCHIVES
from stssl.base.errors import ConfigError, DataError
from stssl.commands.cli import app
from stssl.store.description import describe_store
from stssl.store.schema import ERRORS, MISSING_TIME, NO_SPLIT, SPLIT_CODES, UNKNOWN_LABEL, UNUSABLE
from stssl.store.store import Store

HERE = Options(workers=0, shard=2)


@dataclass(frozen=True)
class Converted:
    name: str
    example: Example
    summary: Summary
    path: Path

    @property
    def store(self) -> Store:
        return Store.open(self.path)


@pytest.fixture(scope="module", params=ARCHIVES)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "source").mkdir()
    example = ARCHIVES[request.param].write_example(folder / "source")
    summary = convert_archive(request.param, example.archive, folder / "example.zarr", HERE, **example.options)
    return Converted(request.param, example, summary, folder / "example.zarr")


def files(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def copied(made, folder):
    """A copy of the example that a test may damage, and the way to its files."""
    source = made.path.parent / "source"
    shutil.copytree(source, folder)

    def moved(path):
        return folder / Path(path).relative_to(source)

    options = {name: moved(value) if isinstance(value, Path) else value for name, value in made.example.options.items()}
    return moved, options


def parts_of(store):
    """Codes of the first split; an archive without any has all patches in none."""
    return store.column(f"split_{store.split_names[0]}") if store.split_names else np.full(store.size, NO_SPLIT)


def changed(store, example):
    """Rows and what differs between a store and what the example says of its patches."""
    found = []
    lat, lon, time = (store.column(name) for name in ("lat", "lon", "time"))
    labels, classes = store.column(example.label_set), store.classes(example.label_set)
    codes, errors = parts_of(store), store.column("error_code")
    for row, patch in enumerate(example.patches):
        own = labels[row] == 1 if store.multilabel(example.label_set) else np.arange(len(classes)) == labels[row]
        place, known = (lat[row], lon[row]), np.isfinite([lat[row], lon[row]])
        facts = {
            "name": store.column("patch_id")[row] == patch.name,
            "classes": {classes[i] for i in np.flatnonzero(own)} == set(patch.classes),
            "place": not known.any() if patch.place is None else np.allclose(place, patch.place, atol=1e-3),
            "time": time[row] == (MISSING_TIME if patch.time is None else patch.time.timestamp()),
            "split": codes[row] == (SPLIT_CODES[patch.part] if patch.part else NO_SPLIT),
            "error": errors[row] == ERRORS[patch.error],
        }
        found += [(row, fact) for fact, holds in facts.items() if not holds]
    return found


def test_rows_are_the_patches_in_their_order(made):
    assert made.summary.patches == made.store.size == len(made.example.patches) >= 6
    assert made.summary.shards == made.summary.converted >= 3
    assert changed(made.store, made.example) == []


def test_control_a_store_of_other_patches_is_noticed(made):
    patches = made.example.patches
    other = Example(made.example.archive, (patches[1], patches[0], *patches[2:]), made.example.label_set)
    facts = {fact for _, fact in changed(made.store, other)}
    assert "name" in facts
    assert "place" in facts or patches[0].place is None


def test_each_band_has_its_pixels(made):
    store, example = made.store, made.example
    assert set(store.bands) == set(example.patches[0].pixels)
    for name, pixels in store.reader(store.bands).read(np.arange(store.size)).items():
        for place, band in enumerate(store.groups[name].bands):
            for row, patch in enumerate(example.patches):
                difference = np.abs(pixels[row, place].astype(int) - patch.pixels[band]).max()
                assert difference <= example.tolerance, (patch.name, band)


def test_control_the_examples_bands_and_patches_differ(made):
    """Else a band or a patch in another's place would pass unnoticed."""
    for patch in made.example.patches:
        values = sorted(patch.pixels.values())
        assert min(np.diff(values), default=1) > made.example.tolerance
    assert len({tuple(patch.pixels.values()) for patch in made.example.patches}) == len(made.example.patches)


def test_all_parts_of_the_split_and_faults_occur(made):
    parts = Counter(patch.part for patch in made.example.patches)
    assert {"train", "validation", "test"} <= parts.keys() or not made.store.split_names
    faults = Counter(patch.error for patch in made.example.patches if patch.error != "ok")
    assert made.summary.errors == dict(faults)
    usable = ~np.isin(made.store.column("error_code"), UNUSABLE)
    assert (parts_of(made.store)[~usable] == NO_SPLIT).all()


def test_what_is_absent_is_counted(made):
    store, patches = made.store, made.example.patches
    text = describe_store(store)
    for fact, known in (("place", [p.place for p in patches]), ("date", [p.time for p in patches])):
        count = sum(value is not None for value in known)
        assert f"{fact:<9} {f'{count:,} patches' if count else 'unknown'}" in text
    labels = store.column(made.example.label_set)
    unlabeled = (labels[:, 0] == UNKNOWN_LABEL) if labels.ndim > 1 else labels < 0
    absent = sum(not patch.classes for patch in patches)
    assert unlabeled.sum() == absent
    assert ("(unlabeled)" in text) == bool(absent)


def test_statistics_are_of_the_training_part(made):
    store = made.store
    for group in store.groups.values():
        whole = group.statistics["split"] == "all"
        rows = [row for row, patch in enumerate(made.example.patches) if whole or patch.part == "train"]
        pixels = store.reader(group.bands).read(np.array(rows))[group.name]
        np.testing.assert_allclose(group.statistics["mean"], pixels.mean((0, 2, 3)), rtol=1e-6)
        assert group.statistics["count"] == [pixels[:, 0].size] * len(group.bands)


def test_a_second_run_changes_nothing(made):
    before = files(made.path)
    again = convert_archive(made.name, made.example.archive, made.path, HERE, **made.example.options)
    assert again.converted == 0 and again.errors == made.summary.errors
    assert files(made.path) == before


def test_an_interrupted_conversion_is_resumed(made, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(done, shards):
        raise StoppedError

    with pytest.raises(StoppedError):
        convert_archive(made.name, made.example.archive, tmp_path / "s.zarr", HERE, stop, **made.example.options)
    with pytest.raises(DataError, match="not finished"):
        Store.open(tmp_path / "s.zarr")
    resumed = convert_archive(made.name, made.example.archive, tmp_path / "s.zarr", HERE, **made.example.options)
    assert resumed.converted == made.summary.shards - 1
    assert files(tmp_path / "s.zarr") == files(made.path)


def test_another_process_reads_the_same(made):
    archive = open_archive(made.name, made.example.archive, **made.example.options)
    copy = pickle.loads(pickle.dumps(archive))
    assert list(copy.names) == list(archive.names)
    for name, pixels in archive.read(1).arrays.items():
        np.testing.assert_array_equal(copy.read(1).arrays[name], pixels)


def paths_of(made, options):
    """Options that a store does not keep, which verify is told again."""
    return {name: value for name, value in options.items() if isinstance(value, Path)}


def test_verify_finds_the_archive_in_the_store(made):
    findings = verify_store(made.path, made.example.archive, **paths_of(made, made.example.options))
    assert findings.problems == () and findings.compared == made.store.size


def test_control_verify_notices_a_damaged_image(made, tmp_path):
    moved, options = copied(made, tmp_path / "source")
    moved(made.example.patches[1].file).write_bytes(b"damaged")
    findings = verify_store(made.path, moved(made.example.archive), **paths_of(made, options))
    assert [made.example.patches[1].name in problem for problem in findings.problems] == [True]


def test_control_verify_notices_a_damaged_store(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "s.zarr")
    group = next(iter(made.store.groups))
    shard = tmp_path / "s.zarr" / group / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 255
    shard.write_bytes(data)
    assert made.example.patches[0].name in verify_store(tmp_path / "s.zarr").problems[0]


def test_control_a_damaged_image_costs_its_patch_alone(made, tmp_path):
    moved, options = copied(made, tmp_path / "source")
    moved(made.example.patches[1].file).write_bytes(b"damaged")
    summary = convert_archive(made.name, moved(made.example.archive), tmp_path / "s.zarr", HERE, **options)
    store = Store.open(tmp_path / "s.zarr")
    assert summary.errors["unreadable"] >= 1
    assert store.column("error_code")[1] == ERRORS["unreadable"]
    assert {row for row, _ in changed(store, made.example)} == {1}
    with pytest.raises(DataError, match="unreadable"):
        strict = Options(workers=0, shard=2, strict=True)
        convert_archive(made.name, moved(made.example.archive), tmp_path / "t.zarr", strict, **options)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_folder_without_an_archive_is_refused_in_words(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        convert_archive(name, tmp_path / "empty", tmp_path / "s.zarr", HERE)
    with pytest.raises(DataError, match="there is no archive at"):
        convert_archive(name, tmp_path / "nothing", tmp_path / "s.zarr", HERE)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("name", ARCHIVES)
def test_options_are_declared_shown_and_checked(name, tmp_path):
    listed = CliRunner().invoke(app, ["convert", name, "--help"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0, listed.output
    own = options_of(name)
    for option in own:
        assert option.flag in listed.output and option.help.split(",")[0] in listed.output
    for option in all_options():
        assert (option.flag in listed.output) == (option.name in {one.name for one in own})
    with pytest.raises(ConfigError, match=f"{name} has no option color. It has: {own[0].name}"):
        convert_archive(name, tmp_path, tmp_path / "s.zarr", HERE, color=1)


def test_without_a_format_the_options_of_all_are_listed():
    listed = CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "200"})
    assert all(option.flag in listed.output for option in all_options())
    assert "bigearthnet-v1, bigearthnet-v2: " in listed.output


class Undeclared:
    def __init__(self, archive: Path, bands: str = "all") -> None: ...


def test_control_a_parameter_without_a_declaration_is_noticed(monkeypatch):
    monkeypatch.setitem(ARCHIVES, "undeclared", Undeclared)
    with pytest.raises(TypeError, match="undeclared: parameter bands must be annotated with an Option"):
        options_of("undeclared")


def test_values_of_options_have_their_type(tmp_path):
    path, folders = (FormatOption("x", "--x", kind, "") for kind in ("path", "folders"))
    assert path.parsed("a") == Path("a") and path.parsed(None) is None
    assert folders.parsed([f"one={tmp_path}"]) == {"one": tmp_path} and folders.parsed([]) is None
    with pytest.raises(ConfigError, match="--x one: give NAME=FOLDER"):
        named_folders(["one"], "--x")
