"""Training from a store in an object store: order, resume, cache and record."""

import json
import logging
import os

import pytest
import torch
from processes import on_ranks
from s3_server import environment, serving

from stssl.base.batch import Stream
from stssl.base.config import merge, validate
from stssl.base.randomness import RandomStream
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_pixels
from stssl.training.checkpoints import read_state
from stssl.training.launch import run
from stssl.training.loop import train_step
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state

pytest.importorskip("obstore")


@pytest.fixture
def server(monkeypatch, store):
    """An S3 server on loopback that holds the tiny store (200 patches in 4 shards)."""
    with serving(store, "tiny.zarr", monkeypatch) as running:
        yield running


@pytest.fixture
def far(recipe_tree, server, tmp_path):
    """The tiny recipe on that store."""
    data = {"store": "s3://bucket/tiny.zarr", "cache_dir": str(tmp_path / "cache"), "shuffle_shards": 2}
    return merge(recipe_tree, {"data": data})


def recipe_of(tree, **data):
    return validate(Recipe, merge(tree, {"data": data}) if data else tree, "test")


def weights(recipe):
    state = read_state(RunFolder.of(recipe).checkpoints.path("last"))
    assert state["progress"]["step"] == 12
    return {key: value for key, value in state["step"].items() if isinstance(value, torch.Tensor)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_that_is_broken_off_ends_like_an_unbroken_one(far, monkeypatch):
    unbroken = recipe_of(merge(far, {"name": "unbroken"}))
    run(unbroken)
    broken = recipe_of(merge(far, {"name": "broken"}))
    from stssl.training import loop

    count = iter(range(100))

    def stop(train_state, raw):
        if next(count) == 9:
            raise KeyboardInterrupt
        return train_step(train_state, raw)

    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    monkeypatch.setattr(loop, "train_step", train_step)
    run(broken)
    assert same(weights(broken), weights(unbroken))
    record = json.loads((RunFolder.of(broken).path / "record.json").read_text())
    assert "dealt out to 1 ranks" in record["order"] and record["ranks"] == 1


def test_control_without_the_buffer_another_order_and_other_weights(far):
    with_buffer, without = recipe_of(merge(far, {"name": "with"})), recipe_of(merge(far, {"name": "without"}))
    without = recipe_of(merge(far, {"name": "without"}), shuffle_shards=0)
    run(with_buffer)
    run(without)
    assert not same(weights(with_buffer), weights(without))


def rows(recipe, steps=6):
    """Store rows of each stream in the first steps."""
    loader = open_train_state(recipe, torch.device("cpu")).task.loader
    read = list(loader.batches(0, steps))
    return {
        stream.value: torch.cat([raw[stream].rows for raw in read if stream in raw]).tolist()
        for stream in loader.sources
    }


def test_labeled_patches_come_in_the_order_of_a_disk(far, recipe_tree):
    near, there = rows(recipe_of(recipe_tree)), rows(recipe_of(far))
    assert there["labeled"] == near["labeled"]
    assert there["unlabeled"] != near["unlabeled"]


def test_the_memory_cache_has_the_same_order(far):
    assert rows(recipe_of(far)) == rows(recipe_of(far, cache="host"))


def test_shards_are_fetched_once_and_labeled_patches_alone(far, server):
    recipe = recipe_of(merge(far, {"model": {"metadata": "none"}}))
    server.requests.clear()
    rows(recipe, steps=20)
    shards = [path for method, path in server.requests if method == "GET" and "/rgb/c/" in path]
    assert set(shards) == {f"/bucket/tiny.zarr/rgb/c/{number}/0/0/0" for number in range(4)}
    fetched = len(shards)
    rows(recipe, steps=20)
    again = [path for method, path in server.requests if method == "GET" and "/rgb/c/" in path][fetched:]
    assert len(again) <= 4  # at most the indexes


def test_where_the_cache_lies_is_not_what_the_run_computes(far):
    one, other = recipe_of(far), recipe_of(far, cache_dir="/elsewhere", cache_bytes=7, cache="host", threads=3)
    assert one.hash() == other.hash()
    assert one.hash() != recipe_of(far, shuffle_shards=3).hash()


def test_a_cache_is_shared_by_the_ranks_of_a_node(far, caplog, monkeypatch):
    data = recipe_of(far).data
    reader = open_pixels(data).reader.reader
    room = data.model_copy(update={"cache_bytes": 6 * reader.shard_bytes()})
    for ranks, warned in (("1", False), ("4", True)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        open_pixels(room, torch.device("cpu"))
        assert ("the ranks of a node (4)" in caplog.text) is warned


def test_a_cache_smaller_than_the_buffer_is_warned_of(far, caplog):
    small = recipe_of(far, cache_bytes=100_000).data
    with caplog.at_level(logging.WARNING, "stssl"):
        open_pixels(small, torch.device("cpu"))
    assert "data.cache_bytes is 100,000" in caplog.text and "shuffle_shards" in caplog.text
    caplog.clear()
    open_pixels(recipe_of(far).data, torch.device("cpu"))
    assert "cache_bytes" not in caplog.text


def test_a_store_on_a_disk_says_nothing_of_order(recipe_tree):
    data = open_pixels(recipe_of(recipe_tree).data)
    assert data.shard_order is None and "order" not in data.about(2)


def work(rank, folder, tree, variables):
    os.environ.update(variables)
    torch.set_num_threads(1)
    train_state = open_train_state(recipe_of(merge(tree, {"schedule": {"supervised_start": 0}})), torch.device("cpu"))
    seen = []
    for raw in train_state.task.loader.batches(0, 6):
        train_step(train_state, raw)
        seen += raw[Stream.UNLABELED].rows.tolist()
        train_state.progress.step += 1
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


def test_two_ranks_go_through_different_shards_and_share_the_cache(far, server, tmp_path):
    server.requests.clear()
    on_ranks(2, work, tmp_path, far, environment(server))
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    shards = [{row // 64 for row in rows} for rows in seen]
    assert len(seen[0]) == 6 * 8 and shards[0] and not shards[0] & shards[1]
    whole = [path for method, path in server.requests if method == "GET" and "/rgb/c/" in path]
    assert len(set(whole)) == 4


def test_the_record_keeps_every_start(far):
    folder = RunFolder.of(recipe_of(far))
    folder.path.mkdir(parents=True)
    for step, world in ((0, 2), (8, 2), (12, 4)):
        about = open_pixels(recipe_of(far).data).about(world)
        folder.write_record(recipe_of(far), about, None, world=world, step=step)
        record = json.loads((folder.path / "record.json").read_text())
        assert record["ranks"] == world
        assert f"dealt out to {world} ranks" in record["order"]
    assert [(start["step"], start["ranks"]) for start in record["starts"]] == [(0, 2), (8, 2), (12, 4)]


def test_another_number_of_ranks_is_said_and_has_another_order(far):
    data = open_pixels(recipe_of(far).data)
    assert "dealt out to 2 ranks" in data.about(2)["order"]
    positions = [
        data.order(data.split.train, 8, 0, RandomStream.UNLABELED, world=n).rows(0, slice(0, 8))[0] for n in (1, 2)
    ]
    assert positions[0].tolist() != positions[1].tolist()
