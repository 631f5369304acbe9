"""A student explains itself: its file alone gives the network, its scaling, its bands and its classes."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import stssl
from stssl.base.config import validate
from stssl.data.resizing import resize_images
from stssl.exports.graphs import graph_of
from stssl.models.sealed import read_with_header, seal
from stssl.recipes.recipe import Recipe
from stssl.students.description import KEY
from stssl.students.samples import read_samples

CDMAD = {"name": "cdmad", "threshold": 0.3, "debias_after": 1}


def train(tree, **changes):
    tree["labels"] = tree["labels"] if "total" in tree["labels"] else {"per_class": 3}
    tree["schedule"] |= {"steps": 4, "supervised_start": 1, "warmup": 1, "evaluate_every": 4}
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) and key != "algorithm" else value
    run = stssl.train(validate(Recipe, tree, "tree"), progress=False)
    stssl.evaluate(run)
    return run, np.load(run.path / "evaluation" / "test.npz")


@pytest.fixture
def plain(recipe_tree):
    return train(recipe_tree, model={"metadata": "none"}, algorithm=CDMAD)


def test_a_students_file_gives_the_logits_of_the_evaluation_with_cdmads_correction(plain, store, tmp_path):
    run, scored = plain
    alone = shutil.copy(run.path / "checkpoints" / "student.safetensors", tmp_path / "alone.safetensors")
    student = stssl.load_student(alone)
    found = stssl.inspect_weights(alone)
    assert found.fits == [found.network] == ["slim_resnet"] and found.backbone_args
    assert found.band_names == student.bands and found.classes == student.classes
    patches = stssl.open_store(store).read(scored["rows"], student.bands)
    logits = student(torch.from_numpy(patches)).numpy()
    assert np.abs(logits - scored["logits_student"]).max() < 1e-5
    assert student.description.cdmad and np.abs(logits + student.bias.numpy() - scored["logits_student"]).max() > 1e-3
    found = student.predict(patches, batch=7)
    assert found.shape == (len(patches), 10) and np.allclose(found, torch.from_numpy(logits).softmax(1), atol=1e-5)
    assert torch.equal(run.student()(torch.from_numpy(patches)), student(torch.from_numpy(patches)))
    assert all(value.dtype == np.float32 for value in (found, student.predict(patches[:0])))


def test_a_direct_student_takes_metadata_and_a_distilled_one_does_not(recipe_tree, store):
    run, scored = train(recipe_tree, name="direct", model={"metadata": "direct"}, algorithm=CDMAD)
    patches, table = stssl.open_store(store).read(scored["rows"]), scored["metadata"]
    student = stssl.load_student(run.path)
    assert (
        np.abs(student(torch.from_numpy(patches), torch.from_numpy(table)).numpy() - scored["logits_student"]).max()
        < 1e-5
    )
    moved = student.predict(patches, table * np.float32(0.5))
    assert np.abs(moved - student.predict(patches, table)).max() > 1e-5
    with pytest.raises(stssl.ConfigError, match=r"sees place and date .*: pass metadata"):
        student.predict(patches)
    run, scored = train(recipe_tree, name="distilled", model={"metadata": "teacher"}, loss={"distillation": 0.5})
    student = stssl.load_student(run)
    assert np.abs(student(torch.from_numpy(patches)).numpy() - scored["logits_student"]).max() < 1e-5
    with pytest.raises(stssl.ConfigError, match="sees only images"):
        student.predict(patches, table)


@pytest.mark.parametrize("how", ["corners", "pillow"])
def test_a_student_resizes_as_in_training(recipe_tree, store, how):
    run, scored = train(recipe_tree, model={"metadata": "none"}, data={"resize": how})
    student = stssl.load_student(run)
    patches = torch.from_numpy(stssl.open_store(store).read(scored["rows"]))
    assert np.abs(student(patches).numpy() - scored["logits_student"]).max() < 1e-5
    graph = graph_of(student)  # what an exported file computes
    assert np.abs(graph(patches.float()).numpy() - scored["logits_student"]).max() < 1e-4
    other = student.description.image.model_copy(update={"resize": "centers"})
    student.description = student.description.model_copy(update={"image": other})
    assert np.abs(student(patches).numpy() - scored["logits_student"]).max() > 1e-4  # the control


def test_bands_of_several_resolutions_and_several_classes(recipe_tree, big_store):
    bands = ["B04", "B8A", "B02", "B01"]
    data = {"store": str(big_store), "bands": bands, "labels": "labels_43", "scale": "sigmas"}
    changes = {"model": {"metadata": "none", "image_size": 24}, "data": data}
    tree = recipe_tree | {"labels": {"total": 30, "allow_missing_classes": True}}
    run, scored = train(tree, **changes)
    student, opened = stssl.load_student(run), stssl.open_store(big_store)
    told = student.description
    assert told.image.stored_pixels is None and told.image.side == 24 and told.task == "multi-label"
    assert told.image.meters == 1200 and [band.meters for band in told.bands] == [10, 20, 10, 60]
    assert told.training.months and told.classes[0].color == "#e6004d"
    parts = [torch.from_numpy(opened.read(scored["rows"], [band]).astype(np.float32)) for band in bands]
    images = torch.cat([resize_images(part, 24, "centers") for part in parts], 1)
    assert np.abs(student(images).numpy() - scored["logits_student"]).max() < 1e-4
    found = student.probabilities(images)
    assert torch.allclose(found, student(images).sigmoid())
    samples = read_samples(run.path / "checkpoints" / "samples.npz")
    assert samples.images.shape == (8, 4, 24, 24) and torch.isfinite(student(torch.from_numpy(samples.images))).all()
    with pytest.raises(stssl.DataError, match=r"trained on 16-bit values \(uint16\), and these are 8-bit"):
        student.predict(np.zeros((1, 4, 24, 24), np.uint8))


def test_the_description_says_what_the_student_takes_and_where_it_comes_from(plain, store):
    run, _ = plain
    told = stssl.load_student(run).description
    assert [band.name for band in told.bands] == ["B04", "B03", "B02"] and told.bands[0].dtype == "uint8"
    assert (told.image.pixels, told.image.stored_pixels, told.image.meters, told.image.bits) == (16, 64, 640, 8)
    assert told.classes[1].name == "Forest" and told.classes[1].color.startswith("#") and told.task == "single-label"
    training = told.training
    assert training.hashes == {"recipe": run.recipe.hash(), "data": stssl.open_store(store).fingerprint}
    assert training.patches == 140 and training.labeled == 30 and training.data_license == "MIT"
    assert training.box is not None and 44 < training.box.south < training.box.north < 53
    assert str(store.parent) not in told.text() and training.recipe["data"]["store"] == store.name  # type: ignore[index]


def test_images_of_another_size_and_arrays_in_a_call_are_refused(plain, store):
    student, patches = stssl.load_student(plain[0]), stssl.open_store(store).read([0, 1])
    for wrong in (patches[..., :32], patches[..., :32, :32], np.pad(patches, ((0, 0), (0, 0), (1, 1), (1, 1)))):
        with pytest.raises(stssl.DataError, match=r"trained on patches of 64 x 64\. Give .* resize=True"):
            student.predict(wrong)
        assert student.predict(wrong, resize=True).shape == (2, 10)
    assert student.predict(patches).shape == (2, 10)  # the control
    with pytest.raises(stssl.DataError, match=r"takes torch tensors, not ndarray.*call predict"):
        student(patches)


def test_values_that_mean_something_else_are_refused(plain, store):
    student = stssl.load_student(plain[0])
    patches = stssl.open_store(store).read([0, 1])
    assert student.predict(patches.astype(np.float32)).shape == (2, 10)  # the control: the same numbers
    for wrong, words in (
        (patches.astype(np.uint16) * 10, "trained on 8-bit images .*uint16: their numbers mean something else"),
        (patches.astype(np.float32) * 10, "these lie in .*: their numbers mean something else"),
        (patches / 255, "as if they were scaled before"),
        (patches.astype(np.float32) * np.nan, "NaN or infinite"),
        (patches[:, :2], r"takes images \[n, 3, height, width\] \(bands: B04, B03, B02\)"),
        (patches[0], r"not an array of the shape \[3, 64, 64\]"),
        (patches.astype(str), "integers or floats"),
    ):
        with pytest.raises(stssl.DataError, match=words):
            student.predict(wrong)
    with pytest.raises(stssl.DataError, match="mean something else"):
        student(torch.from_numpy(patches.astype(np.int32)))


def test_files_that_are_no_student_say_what_to_do(plain, tmp_path):
    run, _ = plain
    path = tmp_path / "student.safetensors"
    weights, header = read_with_header(run.path / "checkpoints" / "student.safetensors")
    told = json.loads(header[KEY])

    def refused(words):
        with pytest.raises(stssl.ConfigError, match=words) as caught:
            stssl.load_student(path)
        assert "\n" not in str(caught.value) and "model.weights: " not in str(caught.value)

    refused("there is no file or folder")
    path.write_text("no model")
    refused("is no model: it is not a safetensors file")
    path.write_bytes(seal(weights, {KEY: json.dumps(told | {"format": 2, "network": 3})}))
    refused("in format 2, and this release of stssl reads format 1. Install a newer stssl")
    path.write_bytes(seal(weights, {KEY: json.dumps(told | {"bands": []})}))
    refused("its description of the network cannot be used \\(bands")
    path.write_bytes(seal(weights, {KEY: json.dumps(told | {"classes": told["classes"][:3]})}))
    refused("its weights do not fit its description")
    hostile = told["network"] | {"backbone": "resnet18", "backbone_args": {"checkpoint_path": str(path)}}
    path.write_bytes(seal(weights, {KEY: json.dumps(told | {"network": hostile})}))
    refused("backbone_args.checkpoint_path: model.weights decides this")
    odd = told["network"] | {"backbone": "resnet18", "backbone_args": {"features_only": True}}
    path.write_bytes(seal(weights, {KEY: json.dumps(told | {"network": odd})}))
    refused("its weights do not fit its description")
    path.write_bytes(seal(weights))
    refused("an earlier release of stssl wrote it. Remove done.json of its run")
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(stssl.ConfigError, match="another program wrote it"):
        stssl.load_student(tmp_path / "other.safetensors")
    whole = seal(weights, {KEY: header[KEY]})
    path.write_bytes(whole.replace(b'\\"cdmad\\":true', b'\\"cdmad\\":null'))
    refused("is damaged: its contents differ from its checksum")
    path.write_bytes(whole)
    assert stssl.load_student(path).classes[0] == "AnnualCrop"  # the control
    (tmp_path / "nothing").mkdir()
    with pytest.raises(stssl.ConfigError, match=r"has no student\.safetensors: it is no run's folder"):
        stssl.load_student(tmp_path / "nothing")


def test_an_old_file_is_written_anew_by_its_command_without_training(plain):
    run, _ = plain
    path = run.path / "checkpoints" / "student.safetensors"
    whole = path.read_bytes()
    path.write_bytes(seal(read_with_header(path)[0]))
    (run.path / "done.json").unlink()
    stssl.train(run.recipe, progress=False)
    assert path.read_bytes() == whole
    with safe_open(path, "pt") as file:
        assert KEY in file.metadata()
