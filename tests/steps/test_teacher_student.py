"""What must hold for every algorithm in the table."""

import copy
from dataclasses import replace

import pytest
import small
import torch
from small import CASES, IDS, MEMORY, MULTILABEL, SINGLELABEL, make_algorithm, make_batch, make_step, train
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode

from stssl.algorithms import ALGORITHMS
from stssl.base.batch import IGNORED, Progress, Stream, View
from stssl.base.errors import ConfigError
from stssl.steps.teacher_student import LossConfig

every = pytest.mark.parametrize(("name", "space"), CASES, ids=IDS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches(space, count, **options):
    return [make_batch(space, seed=seed, **options) for seed in range(count)]


@every
@pytest.mark.parametrize("teacher", [True, False], ids=["teacher", "plain"])
def test_losses_are_finite_and_weights_change(name, space, teacher):
    step = make_step(name, space, teacher=teacher)
    before = {key: value.clone() for key, value in step.networks.named_parameters()}
    assert all(torch.isfinite(torch.tensor(train(step, batches(space, 3)))))
    still = [key for key, value in step.networks.named_parameters() if torch.equal(value, before[key])]
    assert all("absent" in key or "project" in key for key in still), still


@every
def test_a_reloaded_step_continues_with_the_same_losses(name, space):
    first = make_step(name, space)
    train(first, batches(space, 3))
    state = first.state_dict()
    again = make_step(name, space, seed=1)
    again.load_state_dict(state)
    more = [make_batch(space, seed=seed) for seed in (7, 8)]
    assert train(first, more, start=3) == train(again, more, start=3)


@pytest.mark.parametrize(("name", "space"), [case for case in CASES if case[0] in MEMORY])
def test_control_without_its_state_an_algorithm_continues_differently(name, space):
    first = make_step(name, space, network={"backbone_args": small.VIT})
    train(first, batches(space, 3))
    state = {key: value for key, value in first.state_dict().items() if not key.startswith("algorithm.")}
    again = make_step(name, space, seed=1, network={"backbone_args": small.VIT})
    again.load_state_dict(state, strict=False)
    more = [make_batch(space, seed=seed) for seed in (7, 8)]
    assert train(first, more, start=3) != train(again, more, start=3)


def test_a_single_label_task_is_refused_by_cap():
    with pytest.raises(ConfigError, match="multi-label"):
        make_algorithm("cap", SINGLELABEL)


STRICT = {
    name: {"threshold": 1.0, "absent_below": 0.0, "present_above": 1.0}
    for name in ("fixmatch", "defixmatch", "udal", "cdmad")
} | {"flexmatch": {"threshold": 1.0}, "adamatch": {"threshold": 1.0}}


@every
def test_nothing_selected_and_a_class_without_labels_give_finite_gradients(name, space):
    prior = torch.full((space.groups, space.choices), 1 / space.choices)
    prior[0, -1], prior[0, 0] = 0.0, prior[0, 0] + prior[0, -1]
    step = make_step(name, space, prior=prior, **STRICT.get(name, {}))
    assert all(torch.isfinite(torch.tensor(train(step, batches(space, 2)))))
    assert all(torch.isfinite(gradient).all() for gradient in small.gradients(step).values())


@every
def test_all_targets_ignored_gives_finite_gradients(name, space):
    step, batch = make_step(name, space), make_batch(space)
    batch.labels.fill_(IGNORED)
    output = step(batch, Progress(0, 10))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert output.logs["student_supervised"] == 0
    assert all(torch.isfinite(gradient).all() for gradient in small.gradients(step).values())


def in_parts(step, batch, progress, parts):
    """Loss and gradients of a step taken in micro-batches."""
    logs = {}
    for block, plan in zip(batch.split(parts), step.plan(batch, progress, parts), strict=True):
        output = step(block, progress, plan)
        output.loss.backward()
        logs = {key: logs.get(key, 0) + value for key, value in output.logs.items()}
    return logs, small.gradients(step)


@every
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
def test_micro_batches_make_no_difference(name, space, ignored):
    """Uneven blocks of 6 and 10 rows, so that means of means would be wrong."""
    options = {"strong_labeled": True, "loss": LossConfig(distance="cosine")}
    whole = make_step(name, space, **options)
    train(whole, batches(space, 1))
    whole.zero_grad()
    parts = copy.deepcopy(whole)
    batch = make_batch(space, labeled=6, unlabeled=10, seed=5, ignored=ignored)
    progress = Progress(1, 10)
    output = whole(batch, progress)
    output.loss.backward()
    logs, split = in_parts(parts, batch, progress, 4)
    torch.testing.assert_close(logs, output.logs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(split, small.gradients(whole), atol=1e-5, rtol=1e-5)
    for key, value in whole.algorithm.named_buffers():
        torch.testing.assert_close(parts.algorithm.get_buffer(key), value, msg=key)


def test_control_means_of_means_would_differ():
    step = make_step("fixmatch", MULTILABEL)
    batch = make_batch(MULTILABEL, labeled=6, unlabeled=10, ignored=True)
    whole = step(batch, Progress(1, 10)).loss
    blocks = [step(block, Progress(1, 10)).loss for block in batch.split(4)]
    assert abs(torch.stack(blocks).mean() - whole) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"supervised_start": 5},
        {"loss": LossConfig(distillation=0.0)},
        {"loss": LossConfig(distance="logits")},
        {"loss": LossConfig(unlabeled=0.0)},
    ],
)
@pytest.mark.parametrize("site", ["token", "late", "film", "cross_attention"])
def test_every_parameter_joins_every_graph(options, site):
    step = make_step("fixmatch", MULTILABEL, network={"injection": small.part(small.InjectionConfig, site)}, **options)
    step(make_batch(MULTILABEL), Progress(0, 10)).loss.backward()
    assert [key for key, value in step.networks.named_parameters() if value.grad is None] == []


def counted(step, monkeypatch):
    """How many images go through each network, with and without gradients."""
    outputs = []
    for name, network in step.networks.items():
        network.register_forward_pre_hook(
            lambda _, given, name=name: outputs.append((name, len(given[0]), torch.is_grad_enabled()))
        )
    return outputs


def test_no_view_is_forwarded_twice_and_the_weak_one_without_gradients(monkeypatch):
    step = make_step("fixmatch", MULTILABEL)
    outputs = counted(step, monkeypatch)
    step(make_batch(MULTILABEL, labeled=4, unlabeled=8), Progress(0, 10))
    assert outputs == [("student", 12, True), ("teacher", 12, True), ("teacher", 8, False)]


def test_a_supervised_start_looks_at_labels_only(monkeypatch):
    step = make_step("fixmatch", MULTILABEL, supervised_start=3)
    outputs = counted(step, monkeypatch)
    output = step(make_batch(MULTILABEL), Progress(2, 10))
    assert outputs == [("student", 4, True), ("teacher", 4, True)]
    assert set(output.logs) == {"student_supervised", "teacher_supervised", "loss"}
    assert "student_unlabeled" in step(make_batch(MULTILABEL), Progress(3, 10)).logs


def only(batch, views):
    """A batch as the loader delivers it where a step looks at `views`: nothing of a stream without any."""
    streams = {view.stream for view in views}
    kept = {
        "images": {view: batch.images[view] for view in views},
        "metadata": {stream: table for stream, table in batch.metadata.items() if stream in streams},
    }
    if Stream.UNLABELED not in streams:
        kept |= {"index": batch.index[:0], "truth": None}
    return replace(batch, **kept)


def taken(step, batch, progress, micro):
    """Losses of a step's micro-batches; of the whole batch at once, without a plan, where `micro` is None."""
    if micro is None:
        return [step(batch, progress).loss]
    plans = step.plan(batch, progress, micro)
    return [step(part, progress, plan).loss for part, plan in zip(batch.split(micro), plans, strict=True)]


STARTS = {
    name: {"supervised_start": 2} | ({"supervised_steps": 3} if name == "freematch" else {}) for name in ALGORITHMS
}
"""Steps until an algorithm has something to match; FreeMatch needs more of them than all others."""


@every
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_a_step_looks_at_the_views_that_it_says_and_at_no_others(name, space, micro):
    """Those of later steps are neither read nor made for it."""
    whole = make_batch(space)
    for position in (1, 2, 3):
        one = make_step(name, space, **STARTS[name])
        other = copy.deepcopy(one)
        progress = Progress(position, 10)
        views = one.views_at(progress)
        assert views <= one.views_needed and (position < 3 or views == one.views_needed)
        assert taken(one, only(whole, views), progress, micro) == taken(other, whole, progress, micro)


@every
@pytest.mark.parametrize("micro", [None, 2])
def test_control_a_step_cannot_do_without_any_of_its_views(name, space, micro):
    whole = make_batch(space)
    for position in (0, 3):
        step, progress = make_step(name, space, **STARTS[name]), Progress(position, 10)
        for view in step.views_at(progress):
            with pytest.raises(KeyError):
                taken(step, only(whole, step.views_at(progress) - {view}), progress, micro)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("freematch", {"supervised_steps": 2}),
        ("freematch", {"supervised_start": 2}),
        ("softmatch", {"supervised_start": 2}),
        ("udal", {"supervised_start": 2}),
        ("adamatch", {"supervised_start": 2}),
    ],
)
def test_state_is_collected_before_anything_is_matched(name, options):
    """Else thresholds would start from what an untrained network says."""
    step = make_step(name, MULTILABEL, **options)
    before = {key: value.clone() for key, value in step.algorithm.state_dict().items()}
    assert "student_unlabeled" not in step(make_batch(MULTILABEL), Progress(1, 10)).logs
    assert any(not torch.equal(value, before[key]) for key, value in step.algorithm.state_dict().items())


@pytest.mark.parametrize("name", ["defixmatch", "adamatch"])
def test_labeled_and_unlabeled_views_are_compared_in_the_same_mode(name, monkeypatch):
    """Dropout in one of them only would be a difference between the two sets."""
    step = make_step(name, MULTILABEL, network={"backbone_args": small.VIT | {"drop_path_rate": 0.5}})
    outputs = counted(step, monkeypatch)
    batch, progress = make_batch(MULTILABEL, labeled=4, unlabeled=8), Progress(0, 10)
    step(batch, progress)
    assert outputs[-1] == ("teacher", 12, False)
    whole, parts = step.plan(batch, progress, 1)[0], step.plan(batch, progress, 2)
    for number, term in enumerate(whole.terms):
        torch.testing.assert_close(term.weight, torch.cat([part.terms[number].weight for part in parts]))


def test_strong_labeled_views_share_the_supervised_loss():
    both, weak = (make_step("supervised", MULTILABEL, strong_labeled=strong) for strong in (True, False))
    batch = make_batch(MULTILABEL)
    swapped = make_batch(MULTILABEL)
    swapped.images[View.LABELED_WEAK] = batch.images[View.LABELED_STRONG]
    mean = (
        weak(batch, Progress(0, 1)).logs["student_supervised"]
        + weak(swapped, Progress(0, 1)).logs["student_supervised"]
    ) / 2
    torch.testing.assert_close(both(batch, Progress(0, 1)).logs["student_supervised"], mean)
    assert View.LABELED_STRONG in both.views_needed and View.LABELED_STRONG not in weak.views_needed


def test_pseudo_labels_are_measured_against_the_truth():
    step, batch = make_step("fixmatch", SINGLELABEL), make_batch(SINGLELABEL, unlabeled=16)
    logs = step(batch, Progress(0, 10)).logs
    weak = step.networks["teacher"](batch.images[View.UNLABELED_WEAK], batch.metadata[View.UNLABELED_WEAK.stream])
    top, choices = weak.logits.softmax(-1).max(-1)
    chosen = top >= small.FAST["fixmatch"]["threshold"]
    right = chosen & (choices == batch.truth[:, 0])
    assert 0 < chosen.sum() < 16
    for name, expected in (("rate", chosen), ("claimed", chosen), ("right", right), ("actual", torch.ones(16))):
        torch.testing.assert_close(logs[f"pseudo_{name}"], expected.float().mean())


def test_cdmad_calibrates_each_network_with_its_own_bias():
    step = make_step("cdmad", SINGLELABEL)
    image, metadata = torch.randn(3, 3, small.SIZE, small.SIZE), torch.zeros(3, 4)
    blank = torch.ones(1, 3, small.SIZE, small.SIZE)
    for name in ("student", "teacher"):
        network = step.averages[name].network
        bias = network(blank, None, inject=False).logits
        torch.testing.assert_close(step.predictor(name)(image, metadata), network(image, metadata).logits - bias)
    assert not torch.allclose(
        *(step.averages[name].network(blank, None, inject=False).logits for name in ("student", "teacher"))
    )
    plain = make_step("fixmatch", SINGLELABEL)
    torch.testing.assert_close(
        plain.predictor("student")(image, metadata), plain.averages["student"].network(image, metadata).logits
    )


def test_the_blank_image_leaves_the_networks_as_they_were():
    step = make_step(
        "cdmad",
        SINGLELABEL,
        network={
            "backbone": "slim_resnet",
            "backbone_args": {"channels": [4, 4, 4, 4]},
            "injection": small.part(small.InjectionConfig, "late"),
        },
    )
    step.train()
    statistics = {key: value.clone() for key, value in step.networks["teacher"].named_buffers()}
    step._blank(step.networks["teacher"], torch.zeros(2, 3, small.SIZE, small.SIZE))
    assert all(module.training for module in step.networks["teacher"].modules())
    assert all(torch.equal(value, statistics[key]) for key, value in step.networks["teacher"].named_buffers())


def test_the_averaged_labeler_makes_the_labels():
    """Live networks that differ from their averages: only the average decides."""
    step = make_step("fixmatch", SINGLELABEL, labeler="ema")
    batch = make_batch(SINGLELABEL, unlabeled=16)
    before = step(batch, Progress(0, 10)).logs["pseudo_rate"]
    with torch.no_grad():
        step.networks["teacher"].backbone.head.weight.mul_(50)
    assert step(batch, Progress(0, 10)).logs["pseudo_rate"] == before
    live = make_step("fixmatch", SINGLELABEL)
    with torch.no_grad():
        live.networks["teacher"].backbone.head.weight.mul_(50)
    assert live(batch, Progress(0, 10)).logs["pseudo_rate"] != before


def test_batchnorm_statistics_come_from_gradient_passes_only():
    network = {
        "backbone": "slim_resnet",
        "backbone_args": {"channels": [4, 4, 4, 4]},
        "injection": small.part(small.InjectionConfig, "late"),
    }
    with_weak = make_step("fixmatch", MULTILABEL, network=network)
    without = make_step("fixmatch", MULTILABEL, network=network)
    without._training_logits = lambda *_: {view: torch.zeros(8, 5, 2) for view in without.algorithm.views}
    for step in (with_weak, without):
        step(make_batch(MULTILABEL), Progress(0, 10))
    for (key, one), (_, other) in zip(
        with_weak.networks.named_buffers(), without.networks.named_buffers(), strict=True
    ):
        assert torch.equal(one, other), key


def test_the_table_names_every_algorithm_once():
    assert len(set(ALGORITHMS.values())) == len(ALGORITHMS)
    for name in ALGORITHMS:
        assert small.part(small.AlgorithmConfig, name).name == name


def without_values(*things):
    """Copies whose tensors have shapes but no values, and the mode in which they can be computed with."""
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        return mode, *(copy.deepcopy(thing) for thing in things)


@every
def test_nothing_waits_for_the_device(name, space):
    """Tensors without values raise wherever a number is asked of one."""
    mode, step, batch = without_values(make_step(name, space), make_batch(space))
    with mode:
        for number in range(2):
            step(batch, Progress(number, 10)).loss.backward()
            step.after_optimizer()


def test_control_a_number_asked_of_the_device_raises():
    mode, step, batch = without_values(make_step("fixmatch", MULTILABEL), make_batch(MULTILABEL))
    with mode, pytest.raises(DataDependentOutputException):
        float(step(batch, Progress(0, 10)).loss.detach())


@every
def test_losses_are_in_full_precision_under_autocast(name, space):
    step, batch = make_step(name, space), make_batch(space)
    with torch.autocast("cpu", torch.bfloat16):
        rough = step(batch, Progress(2, 10))
    rough.loss.backward()
    assert rough.loss.dtype == torch.float32 and torch.isfinite(rough.loss)
    exact = make_step(name, space)(batch, Progress(2, 10))
    torch.testing.assert_close(rough.logs["student_supervised"], exact.logs["student_supervised"], atol=0.1, rtol=0.05)


def test_micro_batches_of_an_averaged_labeler_are_looked_at_in_blocks(monkeypatch):
    step = make_step("fixmatch", MULTILABEL, labeler="ema")
    sizes = []
    step.averages["teacher"].network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    step.plan(make_batch(MULTILABEL, labeled=4, unlabeled=8), Progress(0, 10), 4)
    assert sizes == [2, 2, 2, 2]


DROPPING = {"network": {"backbone_args": small.SHALLOW | {"depth": 2, "drop_path_rate": 0.5}}}


@pytest.mark.parametrize("name", ["fixmatch", "cdmad"])
@pytest.mark.parametrize("labeler", ["live", "ema"])
def test_drop_path_reaches_the_labeler_in_training_mode_only(name, labeler):
    """In evaluation mode, the labels do not depend on the random numbers of torch; in training mode they do."""
    batch, progress = make_batch(SINGLELABEL, unlabeled=16), Progress(3000, 4000)
    for mode in ("evaluation", "training"):
        step = make_step(name, SINGLELABEL, labeler=labeler, labeler_mode=mode, **DROPPING).train()
        found = []
        for seed in range(6):
            torch.manual_seed(seed)
            found.append(step._labeler_outputs(batch, progress, {"student": {}}))
        seen = [[outputs.labeler[View.UNLABELED_WEAK] for outputs in found]]
        seen += [[outputs.blank for outputs in found]] if name == "cdmad" else []
        for logits in seen:
            assert all(torch.equal(logits[0], other) for other in logits) == (mode == "evaluation")
        modes = {module.training for module in step.networks.modules()}
        assert modes == {True} and not any(part.training for part in step.averaged_network(step.labeler).modules())


def test_a_labeler_in_training_mode_leaves_batchnorm_as_it_was():
    network = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 4, 4, 4]}}
    network["injection"] = small.part(small.InjectionConfig, "late")
    made = [
        make_step("fixmatch", SINGLELABEL, labeler_mode=mode, network=network) for mode in ("evaluation", "training")
    ]
    outputs = []
    for step in made:
        step.train()
        before = {key: value.clone() for key, value in step.networks["teacher"].named_buffers()}
        outputs.append(step._labeler_outputs(make_batch(SINGLELABEL), Progress(0, 4), {}).labeler[View.UNLABELED_WEAK])
        assert all(torch.equal(value, before[key]) for key, value in step.networks["teacher"].named_buffers())
    assert not torch.allclose(*outputs)  # the control: by the batch, not by the running statistics
