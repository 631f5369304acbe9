"""Pretraining runs: they learn, resume exactly, and are the same on any number of ranks."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from rich.console import Console
from test_loop import kill_at, last, same

from stssl.analysis.probe import label_rule, probe_run
from stssl.api.progress import training_progress
from stssl.base.config import merge, validate
from stssl.base.distributed import sum_over_ranks
from stssl.base.errors import ConfigError, DataError, RunError
from stssl.base.labels import LabelSpace
from stssl.contrastive.step import ContrastiveStep
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe
from stssl.scoring.evaluation import spread
from stssl.scoring.knn import knn_scores, vote
from stssl.students.loading import read_described
from stssl.training import loop
from stssl.training.contrastive_task import check_pretraining
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8},
    "image_size": 16,
}
RESNET = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 8, 8, 8]}, "image_size": 16}


@pytest.fixture
def tree(store, tmp_path):
    return {
        "name": "pre",
        "data": {"store": str(store), "labels": "label", "scale": "bytes"},
        "model": VIT,
        "pretext": {"geo": {"name": "clusters", "k": 5}, "queue": 24, "momentum": 0.9, "temperature": 0.1},
        "batch": {"size": 16},
        "schedule": {"steps": 8, "evaluate_every": 4, "decay": "cosine"},
        "evaluation": {"batch": 32},
        "launch": {"workers": 0, "storage": str(tmp_path / "runs")},
        "compute": {"threads": 1},
        "logging": {"every": 2, "tensorboard": False},
    }


@pytest.fixture
def dated(tree, big_store):
    """The same on a store whose places have several dates."""
    return merge(
        tree,
        {
            "data": {"store": str(big_store), "labels": "labels_19", "scale": "sigmas"},
            "pretext": {"temporal": True, "geo": {"name": "regression"}},
        },
    )


def make(tree, **changes):
    for key, value in changes.items():
        tree = merge(tree, {key: value})
    return validate(PretrainRecipe, tree, "test")


def test_a_run_leaves_what_it_promises(tree):
    recipe = make(tree)
    folder = run(recipe)
    rows = list(folder.rows())
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 8]
    assert {"contrast", "geo", "geo_right", "key_found", "loss"} <= rows[0].keys()
    assert "accuracy" in rows[-1] and folder.finished()["steps"] == 8
    assert folder.recipe() == recipe and (folder.path / "checkpoints" / "encoder.safetensors").exists()
    told = read_described(folder.path).description
    assert told.network.role == "encoder" and told.classes == () and told.training.labeled is None
    assert not (folder.path / "labels.json").exists()
    with pytest.raises(RunError, match="is a pretraining run, not a training run"):
        folder.recipe_as(Recipe)


def test_it_learns(tree):
    easy = tree | {"model": RESNET, "views": {"jitter": 0.0, "gray": 0.0}}
    recipe = make(easy, schedule={"steps": 120, "evaluate_every": 120}, optimizer={"name": "adamw", "lr": 0.005})
    rows = [row for row in run(recipe).rows() if row["kind"] == "train"]
    assert np.mean([row["geo"] for row in rows[-10:]]) < 0.9 * rows[0]["geo"]


def test_temporal_positives_are_other_acquisitions(dated):
    recipe = make(dated)
    train_state = open_train_state(recipe, torch.device("cpu"))
    raw = train_state.task.loader.sources[next(iter(train_state.task.loader.sources))].load(0, (0, 1))
    places = np.asarray(train_state.task.data.store.column("location_id"))
    share = train_state.task.positives.share(train_state.task.data.split.train)
    assert 0 < share < 1 and train_state.task.about()["true_pairs"] == share
    assert raw.true_pairs.any() and len(next(iter(raw.arrays.values()))) == 32
    positives = train_state.task.positives
    partner = positives.draw(raw.rows.numpy(), np.zeros(16, np.int64), recipe.seed)
    assert (places[partner] == places[raw.rows]).all() and (
        (partner != raw.rows.numpy()) == raw.true_pairs.numpy()
    ).all()
    run(recipe)


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_killed_run_ends_with_the_same_weights_and_queue(dated, tmp_path, model):
    unbroken, killed = (make(dated | {"model": model}, name=name) for name in ("unbroken", "killed"))
    run(unbroken)
    kill_at(killed, 6)
    run(killed)
    assert same(last(killed)["step"], last(unbroken)["step"])
    assert {"queue.keys", "queue.pointer"} <= last(killed)["step"].keys()


def test_control_without_the_queue_a_resumed_run_ends_elsewhere(dated, tmp_path):
    from stssl.training.checkpoints import read_state, write_state

    unbroken, killed = (make(dated, name=name) for name in ("unbroken", "killed"))
    run(unbroken)
    kill_at(killed, 6, written=True)
    path = RunFolder.of(killed).checkpoints.path("last")
    state = read_state(path)
    state["step"]["queue.keys"] = torch.nn.functional.normalize(torch.randn(24, 128), dim=1)
    path.unlink()
    write_state(state, path)
    run(killed)
    assert not same(last(killed)["step"], last(unbroken)["step"])


def replay(tree, gather=True, shuffles=None):
    train_state = open_train_state(validate(PretrainRecipe, tree, "test"), torch.device("cpu"))
    if shuffles is not None:
        train_state.task.step.shuffles = shuffles
    if not gather:
        from stssl.contrastive import step as contrastive

        contrastive.gather_rows = lambda rows, *_: rows
    losses = []
    for raw in train_state.task.loader.batches(0, 6):
        logs = loop.train_step(train_state, raw).logs
        world = dist.get_world_size() if dist.is_initialized() else 1
        losses.append(float(sum_over_ranks(logs["loss"])) / world)
        train_state.progress.step += 1
    queue = train_state.task.step.queue
    return {"losses": losses, "queue": queue.keys.flatten().tolist(), "pointer": int(queue.pointer)}


def work(rank, folder, trees, options):
    torch.set_num_threads(1)
    (folder / f"{rank}.json").write_text(json.dumps([replay(tree, **options) for tree in trees]))


def together(folder, trees, **options):
    folder.mkdir()
    on_ranks(3, work, folder, trees, options)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_three_ranks_train_the_same_and_hold_the_same_queue(tree, dated, tmp_path):
    multilabel = merge(tree, {"pretext": {"loss": "ml_cpc", "alpha": 2.0}})
    trees = [tree, multilabel, dated]
    ranks = together(tmp_path / "ranks", trees)
    for number, own in enumerate(trees):
        alone = replay(own)
        for found in ranks:
            assert found[number]["queue"] == ranks[0][number]["queue"]
            assert found[number]["pointer"] == alone["pointer"]
        np.testing.assert_allclose(ranks[0][number]["losses"], alone["losses"], atol=1e-4)
        np.testing.assert_allclose(ranks[0][number]["queue"], alone["queue"], atol=1e-4)


def test_control_without_the_gather_queues_differ(tree, tmp_path):
    ranks = together(tmp_path / "apart", [tree], gather=False)
    assert ranks[0][0]["queue"] != ranks[1][0]["queue"]


def test_shuffled_keys_come_back_to_their_queries(tree, tmp_path):
    """A transformer does not mind who shares its batch, so with shuffling it must train as without."""
    shuffled, plain = together(tmp_path / "shuffled", [tree], shuffles=True)[0][0], replay(tree)
    np.testing.assert_allclose(shuffled["losses"], plain["losses"], atol=1e-4)
    np.testing.assert_allclose(shuffled["queue"], plain["queue"], atol=1e-4)


def test_control_a_wrong_way_back_trains_otherwise(tree, tmp_path, monkeypatch):
    plain = replay(tree)["losses"]
    right = ContrastiveStep._keys
    wrong = lambda self, batch, progress: right(self, batch, progress).flip(0)  # noqa: E731
    monkeypatch.setattr(ContrastiveStep, "_keys", wrong)
    assert max(abs(a - b) for a, b in zip(replay(tree)["losses"], plain, strict=True)) > 1e-4


def test_batchnorm_backbones_shuffle_and_transformers_do_not(tree):
    for model, shuffles in ((RESNET, True), (VIT, False)):
        assert open_train_state(make(tree | {"model": model}), torch.device("cpu")).task.step.shuffles is shuffles


def test_a_key_that_is_not_finite_never_enters_the_queue(tree):
    """The first step, which SGD has no momentum for yet, goes wrong in the key and in BatchNorm's statistics."""
    recipe = make(tree | {"model": RESNET})
    RunFolder.of(recipe).claim(recipe)
    train_state = open_train_state(recipe, torch.device("cpu"))
    train_state.resume()
    make_batch = train_state.task.batch

    def batch(raw):
        made = make_batch(raw)
        if train_state.progress.step == 0:
            made.query[0] = made.key[0] = torch.nan
        return made

    train_state.task.batch = batch
    loop.train_to_end(train_state, lambda metrics: None)
    state = train_state.task.step.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert max(float(value.abs().max()) for name, value in state.items() if "weight" in name) < 10
    assert [row["step"] for row in RunFolder.of(recipe).rows("nonfinite.jsonl")] == [0]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"pretext": {"geo": {"name": "clusters", "k": 5000}}}, DataError, r"5000 different places are needed"),
        ({"pretext": {"que": 1}}, ConfigError, r"unknown key pretext.que: did you mean queue"),
        ({"data": {"labels": "labels_43"}}, ConfigError, r"has no 'labels_43'"),
        ({"launch": {"workers": 17}}, ConfigError, r"batch.size 16 is smaller than launch.workers 17"),
    ],
)
def test_what_cannot_be_is_named(tree, changes, error, words):
    with pytest.raises(error, match=words):
        run(make(tree, **changes))


@pytest.mark.parametrize(("queue", "told"), [(4096, True), (24, False)])
def test_a_queue_longer_than_the_data_is_told(tree, caplog, queue, told):
    check_pretraining(make(tree, pretext={"queue": queue}))
    assert ("pretext.queue=4096 is longer than the" in caplog.text) is told


def test_neighbors_vote_for_their_class():
    space = LabelSpace(("a", "b"), False)
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.5]])
    targets = torch.tensor([[0], [0], [1], [-1]])
    said = vote(torch.tensor([[1.0, 0.05], [0.1, 1.0]]), bank, targets, space, k=2, temperature=0.1)
    assert said.argmax(1).tolist() == [0, 1]
    many = LabelSpace(("a", "b"), True)
    said = vote(
        torch.tensor([[1.0, 0.0]]), bank, torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]]), many, k=2, temperature=1
    )
    assert said[0, 0] > 0 > said[0, 1]
    assert len(spread(np.arange(10), 4)) == 4 and len(spread(np.arange(3), 4)) == 3


def test_a_probe_is_chosen_on_validation_and_written_down(tree):
    folder = run(make(tree))
    found = probe_run(folder.path, ["per-class=3", "all"], overrides=["epochs=10"])
    rows = {(row["method"], row["labels"]): row for row in found.rows}
    assert set(rows) == {(method, labels) for method in ("linear", "k-NN") for labels in ("per-class=3", "all")}
    assert rows["linear", "per-class=3"]["labeled"] == 30
    assert rows["linear", "all"]["test"]["accuracy"] > 0.2
    assert json.loads(found.path.read_text())["rows"] == found.rows
    again = probe_run(folder.path, ["per-class=3"], overrides=["epochs=10"])
    assert len(again.rows) == 4 and all(row in found.rows for row in again.rows)
    longer = probe_run(folder.path, ["per-class=3"], overrides=["epochs=11"])
    assert {row["labels"] for row in longer.rows} == {"per-class=3"}  # rows of another protocol are not kept
    other = probe_run(folder.path, ["per-class=3"], random=True, overrides=["epochs=10"])
    assert other.rows[0]["test"] != rows["linear", "per-class=3"]["test"] and other.path != found.path


def test_the_newest_weights_are_kept_whatever_labels_say(tree):
    folder = run(make(tree))
    best = folder.checkpoints.path("best").read_bytes()
    assert best == folder.checkpoints.path("last").read_bytes() and folder.finished()["best"] is None


def test_labels_on_one_part_alone_give_no_score_and_no_error(tree):
    train_state = open_train_state(make(tree), torch.device("cpu"))
    task = train_state.task
    known = np.asarray(task.data.store.column("label")).copy()
    known[task.data.split.validation] = -1
    space = LabelSpace(task.data.store.classes("label"), False)
    options = {"bank": 50, "k": 3, "temperature": 0.1, "batch": 32, "limit": None}
    encoder = task.step.networks["query"]
    for targets, found in ((known, False), (np.asarray(task.data.store.column("label")), True)):
        labels = space, torch.from_numpy(targets.astype(np.int64))[:, None]
        scores = knn_scores(encoder.features, task.data, task.pixels, labels, "validation", **options)
        assert bool(scores) is found


def test_a_bar_shows_runs_without_scores(capsys):
    with training_progress(Console(), 4) as watch:
        for row in ({"kind": "train", "step": 2, "loss": 1.0}, {"kind": "validation", "step": 2}):
            watch(row)


def test_fine_tuning_is_a_run_beside_the_pretraining(tree):
    folder = run(make(tree))
    found = probe_run(folder.path, ["per-class=3"], fine_tune=True, overrides=["epochs=2", "fine_tune_steps=4"])
    assert found.rows[-1]["method"] == "fine-tune" and "accuracy" in found.rows[-1]["test"]
    (done,) = (folder.path / "probe").glob("fine_tune-*/done.json")
    assert json.loads(done.read_text())["steps"] == 4


@pytest.mark.parametrize("text", ["few", "fraction", "per-class=0", "fraction=2"])
def test_wrong_numbers_of_labels_are_named(text):
    with pytest.raises(ConfigError, match=f"labels {text}"):
        label_rule(text, 0)
