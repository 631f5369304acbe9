"""What a store says of itself is checked before anything acts on it, and is what its conversion wrote."""

import json
import logging
import os
import shutil

import dirty
import pytest
import tiny
from s3_server import environment, s3_server

from stssl.archives.conversion import Options, convert_archive, verify_store
from stssl.base import remote
from stssl.base.errors import DataError
from stssl.store.description import describe_store
from stssl.store.store import Store
from stssl.store.writer import Writer

HUGE = 10**400
DEEP = json.loads("[" * 90 + "]" * 90)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Several arrays, several labels a patch, four shards."""
    folder = tmp_path_factory.mktemp("description")
    archive = dirty.clean(folder / "archive", 6)
    convert_archive("bigearthnet-v1", archive, folder / "whole.zarr", Options(workers=0, shard=4))
    return folder / "whole.zarr"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy.zarr")


def set_at(tree, path, value):
    *above, last = path
    for key in above:
        tree = tree[key]
    tree[last] = value


def change(store, name, path, value, *, hashes=True, consolidated=True):
    """Set a value of an array (or, with an empty name, of the group) in the root's file, or in the array's own."""
    root = json.loads((store / "zarr.json").read_text())
    if not hashes:
        root["attributes"].pop("description_hashes", None)
    if not consolidated:
        root.pop("consolidated_metadata", None)
    if name and not consolidated:
        own = json.loads((store / name / "zarr.json").read_text())
        set_at(own, path, value)
        (store / name / "zarr.json").write_text(json.dumps(own))
    else:
        set_at(root["consolidated_metadata"]["metadata"][name] if name else root, path, value)
    (store / "zarr.json").write_text(json.dumps(root))


CODECS = ("codecs", 0, "configuration", "codecs")
DAMAGE = [
    ("b10", ("shape", 0), HUGE, "shape"),
    ("b10", ("shape", 0), 7, "shape"),
    ("b10", ("shape",), [6, 4], "shape"),
    ("b10", ("shape", 1), True, "shape"),
    ("b10", ("data_type",), "float64", "data_type"),
    ("b10", ("data_type",), {"name": "numpy.datetime64"}, "data_type"),
    ("b10", ("fill_value",), 65536, "fill_value"),
    ("b10", ("fill_value",), 3, "fill_value"),
    ("b10", ("chunk_grid", "configuration", "chunk_shape", 0), 0, "chunk_shape"),
    ("b10", ("chunk_grid", "configuration", "chunk_shape", 0), -4, "chunk_shape"),
    ("b10", ("chunk_grid", "configuration", "chunk_shape", 0), 2**31, "chunk_shape"),
    ("b10", ("chunk_grid", "configuration", "chunk_shape"), [4, 4], "chunk_shape"),
    ("b10", ("chunk_grid", "configuration"), 3, "chunk_shape"),
    ("b10", ("chunk_grid", "name"), ["regular"], "chunk_grid.name"),
    ("b10", ("codecs",), [], "codecs"),
    ("b10", ("codecs", 0, "name"), "pickle", "codecs.0.name"),
    ("b10", (*CODECS, 1, "name"), "zlib", "codecs.1.name"),
    ("b10", (*CODECS, 1, "configuration", "clevel"), HUGE, "clevel"),
    ("b10", (*CODECS, 1, "configuration", "typesize"), 0, "typesize"),
    ("b10", (*CODECS, 0, "configuration"), {}, "endian"),
    ("b10", (*CODECS, 0, "configuration"), {"endian": "little", "x": 1}, "configuration"),
    ("b10", ("codecs", 0, "configuration", "chunk_shape", 0), 0, "chunk_shape"),
    ("b10", ("codecs", 0, "configuration", "chunk_shape", 0), 3, "chunk_shape"),
    ("b10", ("codecs", 0, "configuration", "index_codecs"), [{"name": "gzip"}], "index_codecs"),
    ("b10", ("chunk_key_encoding", "configuration"), {"separator": "."}, "shard"),
    ("b10", ("attributes", "bands"), ["B02"], "bands"),
    ("b10", ("attributes", "bands"), ["B02", "B03", "B02", "B08"], "bands"),
    ("b10", ("attributes", "bands"), 4, "bands"),
    ("b10", ("attributes", "statistics"), [1], "statistics"),
    ("b10", ("attributes", "statistics", "mean"), [1.0, 2.0], "statistics.mean"),
    ("b10", ("attributes", "statistics", "std", 0), "x", "statistics.std"),
    ("b10", ("attributes", "statistics", "std", 0), HUGE, "statistics.std"),
    ("b10", ("attributes", "shard_checksums"), [1], "shard_checksums"),
    ("b10", ("attributes", "shard_checksums"), [1, 2**32], "shard_checksums"),
    ("b10", ("stranger",), {"must_understand": False}, "stranger"),
    ("b10", ("storage_transformers",), [{"name": "x"}], "storage_transformers"),
    ("b10", ("dimension_names",), ["a"], "dimension_names"),
    ("labels_19", ("attributes", "classes"), {"a": 1}, "classes"),
    ("labels_19", ("attributes", "classes"), ["a"] * 19, "classes"),
    ("labels_19", ("attributes", "classes"), ["a"], "classes"),
    ("labels_19", ("attributes",), {}, "attributes.kind"),
    ("labels_19", ("attributes", "kind"), "single-label", "data_type"),
    ("labels_19", ("attributes", "kind"), DEEP, "kind"),
    ("lat", ("fill_value",), "nan", "fill_value"),
    ("lat", ("data_type",), "string", "vlen-utf8"),
    ("lat", ("shape",), [6, 2], "shape"),
    ("day_of_year", ("fill_value",), 2**63, "fill_value"),
    ("time", ("shape", 0), 2**31, "shape"),
    ("content_hash", ("chunk_grid", "configuration", "chunk_shape", 0), 2**30, "chunk_shape"),
    ("patch_id", ("fill_value",), 0, "fill_value"),
    ("patch_id", ("codecs", 0, "name"), "bytes", "codecs.0.name"),
    ("patch_id", ("zarr_format",), 2, "zarr_format"),
]


@pytest.mark.parametrize("consolidated", [True, False])
def test_what_an_array_says_is_checked_before_it_is_used(consolidated, whole, tmp_path):
    """Of stores without hashes, too, whose descriptions cannot be compared."""
    misses = []
    for number, (name, path, value, key) in enumerate(DAMAGE):
        copy = tmp_path / f"{number}.zarr"
        copy.mkdir()
        for file in whole.rglob("zarr.json"):
            target = copy / file.relative_to(whole)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
        change(copy, name, path, value, hashes=False, consolidated=consolidated)
        places = (f"{copy}/zarr.json: consolidated_metadata.metadata.{name}.", f"{copy}/{name}/zarr.json: ")
        with pytest.raises(DataError) as caught:
            Store.open(copy)
        text = str(caught.value)
        if not text.startswith(places[not consolidated]) or key not in text or len(text) > 700:
            misses.append((path, text))
    assert misses == []


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("zarr_format",), 2, "zarr_format"),
        (("node_type",), "array", "node_type"),
        (("attributes",), [1], "attributes"),
        (("attributes", "pixel_arrays"), ["../x"], "attributes.pixel_arrays"),
        (("attributes", "label_sets"), ["a\0b"], "attributes.label_sets"),
        (("attributes", "conversion"), {"archive": 3}, "attributes.conversion"),
        (("attributes", "errors"), {"unreadable": "x"}, "attributes.errors"),
        (("attributes", "maps"), ["b10"], "attributes.maps"),
        (("attributes", "splits"), ["nowhere"], "has lost its array split_nowhere"),
        (("consolidated_metadata",), [], "consolidated_metadata.metadata"),
        (("consolidated_metadata", "kind"), "x", "consolidated_metadata.kind"),
        (("consolidated_metadata", "metadata", "lat"), 3, "consolidated_metadata.metadata"),
        (("consolidated_metadata", "metadata", "\x1b[2J"), {"node_type": "array"}, "consolidated_metadata.metadata"),
    ],
)
def test_what_a_group_says_is_checked(path, value, key, copy):
    change(copy, "", path, value, hashes=False)
    with pytest.raises(DataError) as caught:
        Store.open(copy)
    assert "copy.zarr" in str(caught.value) and key in str(caught.value)


def test_a_description_that_is_no_file_or_too_large_is_not_read(copy):
    (copy / "zarr.json").unlink()
    os.mkfifo(copy / "zarr.json")
    with pytest.raises(DataError, match=r"copy.zarr/zarr.json: it is not a file"):
        Store.open(copy)
    (copy / "zarr.json").unlink()
    (copy / "zarr.json").touch()
    os.truncate(copy / "zarr.json", 10**12)
    with pytest.raises(DataError, match=r"copy.zarr/zarr.json: it is larger than"):
        Store.open(copy)


def swapped(values):
    return [values[1], values[0], *values[2:]]


MEANING = [
    ("labels_19", ("attributes", "classes"), swapped),
    ("labels_19", ("attributes", "classes", 3), lambda name: f"{name} "),
    ("b10", ("attributes", "bands"), swapped),
    ("b10", ("attributes", "statistics", "mean", 1), lambda value: value + 1e-6),
    ("b20", ("attributes", "statistics", "std"), swapped),
    ("b10", ("attributes", "units"), lambda value: "1"),
    ("b10", ("attributes", "shard_checksums"), swapped),
    ("b10", (*CODECS, 1, "configuration", "clevel"), lambda value: value + 1),
    ("lat", ("fill_value",), lambda value: 0.0),
    ("time", ("attributes", "units"), lambda value: "days since 1970-01-01"),
    ("error_code", ("attributes", "meanings", "nodata"), lambda value: 6),
    ("", ("attributes", "label_sets"), swapped),
    ("", ("attributes", "column_hashes", "lat"), lambda value: "0" * 32),
    ("", ("attributes", "error_codes", "nodata"), lambda value: 6),
]


def value_at(store, name, path):
    tree = json.loads((store / "zarr.json").read_text())
    tree = tree["consolidated_metadata"]["metadata"][name] if name else tree
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize(("name", "path", "how"), MEANING)
def test_what_gives_numbers_their_meaning_is_what_was_converted(name, path, how, consolidated, copy):
    value = value_at(copy, name, path)
    change(copy, name, path, how(value), consolidated=consolidated)
    with pytest.raises(DataError) as caught:
        Store.open(copy)
    file = "copy.zarr/zarr.json: " if consolidated or not name else f"copy.zarr/{name}/zarr.json: "
    assert file in str(caught.value) and "is not what was converted" in str(caught.value)
    key = ".".join(path[:2]) if path[0] == "attributes" else path[0]
    assert key in str(caught.value)
    with pytest.raises(DataError, match="is not what was converted"):
        verify_store(copy)
    change(copy, name, path, value, consolidated=consolidated)
    Store.open(copy)


def test_controls_what_has_no_meaning_may_change(copy, whole):
    change(copy, "labels_19", ("attributes", "note"), "mine")
    change(copy, "", ("attributes", "note"), {"by": "me"})
    change(copy, "lat", ("dimension_names",), ["row"])
    root = json.loads((copy / "zarr.json").read_text())
    (copy / "zarr.json").write_text(json.dumps(dict(reversed(root.items())), sort_keys=True))
    assert Store.open(copy).fingerprint == Store.open(whole).fingerprint
    root = json.loads((copy / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["labels_19"]["attributes"]["classes"][:2] = ["b", "a"]
    tiny.seal(copy, root)  # as a conversion that said so would have
    assert Store.open(copy).classes("labels_19")[:2] == ("b", "a")


def test_no_hash_can_be_left_out(copy):
    root = json.loads((copy / "zarr.json").read_text())
    del root["attributes"]["description_hashes"]["labels_19/attributes.classes"]
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(DataError, match=r"zarr.json: attributes.description_hashes is damaged"):
        Store.open(copy)


@pytest.mark.parametrize(
    ("lost", "words"),
    [(("description_hashes",), "descriptions"), (("description_hashes", "column_hashes"), "columns and descriptions")],
)
def test_older_stores_open_with_one_warning_that_says_what_they_lack(lost, words, copy, caplog):
    caplog.set_level(logging.WARNING, "stssl")
    root = json.loads((copy / "zarr.json").read_text())
    for key in lost:
        del root["attributes"][key]
    (copy / "zarr.json").write_text(json.dumps(root))
    for _ in range(2):
        opened = Store.open(copy)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        f"{copy} was written before stores had checksums of their {words}"
    ]
    assert f"checksums none of its {words}: an older store" in describe_store(opened)
    assert verify_store(copy).problems == ()


def test_verify_compares_the_copies_of_a_description(copy):
    assert verify_store(copy).problems == ()
    own = json.loads((copy / "labels_19" / "zarr.json").read_text())
    own["attributes"]["classes"] = swapped(own["attributes"]["classes"])
    (copy / "labels_19" / "zarr.json").write_text(json.dumps(own))
    (copy / "lat" / "zarr.json").unlink()
    (copy / "lon" / "zarr.json").write_text("{")
    first, *rest = verify_store(copy).problems
    assert first == "labels_19/zarr.json: attributes.classes differs from the copy in the store's zarr.json"
    assert rest[0].startswith("lat/zarr.json is missing") and "lon/zarr.json is damaged" in rest[1] and len(rest) == 2


def test_a_conversion_does_not_continue_over_a_damaged_description(whole, tmp_path, monkeypatch):
    archive, store, options = whole.parent / "archive", tmp_path / "store.zarr", Options(workers=0, shard=4)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_archive("bigearthnet-v1", archive, store, options)
    good = (store / "b10" / "zarr.json").read_text()
    own = json.loads(good)
    own["fill_value"] = HUGE
    (store / "b10" / "zarr.json").write_text(json.dumps(own))
    with pytest.raises(DataError, match=r"store.zarr/b10/zarr.json is damaged: it .*integer|fill_value must be"):
        convert_archive("bigearthnet-v1", archive, store, options)
    (store / "b10" / "zarr.json").write_text(good)
    convert_archive("bigearthnet-v1", archive, store, options)
    assert (store / "zarr.json").read_bytes() == (whole / "zarr.json").read_bytes()


def test_a_store_in_s3_goes_through_the_same_checks_with_one_request(copy, tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    remote.bucket.cache_clear()
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)

        def upload():
            for path in copy.rglob("zarr.json"):
                server.objects[f"bucket/store.zarr/{path.relative_to(copy)}"] = path.read_bytes()

        upload()
        Store.open("s3://bucket/store.zarr")
        assert server.requests == [("GET", "/bucket/store.zarr/zarr.json")]
        change(copy, "b10", ("attributes", "statistics", "mean", 0), 0.5)
        upload()
        with pytest.raises(
            DataError, match=r"s3://bucket/store.zarr/zarr.json: .*b10.attributes.statistics is not what"
        ):
            Store.open("s3://bucket/store.zarr")
        change(copy, "b10", ("shape", 0), HUGE, hashes=False)
        upload()
        with pytest.raises(DataError, match=r"s3://bucket/store.zarr/zarr.json"):
            Store.open("s3://bucket/store.zarr")
        server.objects["bucket/store.zarr/zarr.json"] = b" " * (65 << 20)
        with pytest.raises(DataError, match=r"s3://bucket/store.zarr/zarr.json: it is larger than"):
            Store.open("s3://bucket/store.zarr")
    remote.bucket.cache_clear()
