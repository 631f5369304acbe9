"""Check the algorithms against recorded values in the files `<algorithm>_{ml,sl}<C>[_variant].npz`.

The real training step runs with networks that return recorded logits. In file names, `ml` is multi-label, `sl` is
single-label, and C is the number of classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from oracle import GRADIENT, Oracle
from torch import Tensor, nn

from stssl.algorithms import ALGORITHMS, Algorithm, AlgorithmConfig, DataFacts, LabelerOutputs, LossTerm
from stssl.algorithms.base import BaseAlgorithmConfig, LossRole, known
from stssl.algorithms.cap import Cap
from stssl.algorithms.cdmad import Cdmad
from stssl.algorithms.freematch import FreeMatch
from stssl.algorithms.losses import Distance, distance, presence
from stssl.algorithms.softmatch import SoftMatch
from stssl.algorithms.udal import Udal
from stssl.base.batch import Batch, Progress, View
from stssl.base.config import config_types, part_name
from stssl.base.labels import LabelSpace
from stssl.models import Network, Prediction
from stssl.steps.teacher_student import LossConfig, TeacherStudentStep

VIEWS = {
    "lb": View.LABELED_WEAK,
    "lb_s": View.LABELED_STRONG,
    "ulb_w": View.UNLABELED_WEAK,
    "ulb_s": View.UNLABELED_STRONG,
}
DISTANCES: dict[str, Distance] = {"mse": "mse", "mae": "mae", "cos": "cosine", "none": "none"}


class Table(Network):
    """Replace a network: return logits and features that the input contains, from the column `column` on."""

    def __init__(self, column: int, classes: int, width: int) -> None:
        nn.Module.__init__(self)
        self.column, self.classes, self.width = column, classes, width
        self.unused = nn.Parameter(torch.zeros(1))
        self.blank = torch.zeros(1, classes)

    def forward(self, image: Tensor, metadata: Tensor | None = None, inject: bool = True) -> Prediction:
        row = image[:, self.column : self.column + self.classes + self.width, 0, 0]
        logits, feature = row[:, : self.classes], row[:, self.classes :]
        return Prediction(logits if inject else self.blank, feature)


def label_options(h: dict[str, Any]) -> dict[str, Any]:
    return {"soft": not h["hard_label"], "temperature": float(h["T"])}


def cutoffs(h: dict[str, Any]) -> dict[str, Any]:
    if isinstance(h["p_cutoff"], list):
        return {"absent_below": h["p_cutoff"][0], "present_above": h["p_cutoff"][1]}
    return {"threshold": h["p_cutoff"], "absent_below": None, "present_above": None}


def target_name(h: dict[str, Any]) -> str:
    return "labeled" if h["multilabel"] else "uniform" if h["dist_uniform"] else "predicted"


OPTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "fixmatch": lambda h: label_options(h) | cutoffs(h),
    "defixmatch": lambda h: label_options(h) | cutoffs(h),
    "cdmad": lambda h: cutoffs(h) | {"debias_after": h["debias_start_iter"]},
    "udal": lambda h: (
        label_options(h)
        | cutoffs(h)
        | {
            "ema_decay": h["ema_p"],
            "least_exponent": float(h["a_min"]),
            "power": float(h["k"]),
            "target": target_name(h),
        }
    ),
    "freematch": lambda h: (
        label_options(h)
        | {
            "ema_decay": h["ema_p"],
            "fairness_weight": h["ent_loss_ratio"],
            "supervised_steps": h["sup_warmup_iters"],
            "quantile": 0.8 if h["use_quantile"] else None,
            "clip": h["clip_thresh"],
        }
    ),
    "softmatch": lambda h: (
        label_options(h)
        | {
            "ema_decay": h["ema_p"],
            "sigmas": float(h["n_sigma"]),
            "align": h["dist_align"],
            "target": target_name(h),
            "by_side": h["per_class"],
        }
    ),
    "cap": lambda h: {
        "labeler": "ema" if h["pseudolabel_from_ema"] else "live",
        "rows": h["queue_length"],
        "positive_share": float(h["pos_per"]),
        "negative_share": float(h["neg_per"]),
        "asymmetric": h["use_asl"],
        "gamma_negative": float(h["gamma_neg"]),
        "gamma_positive": float(h["gamma_pos"]),
        "clip": h["clip"],
        "detach_focus": h["disable_torch_grad_focal_loss"],
        "epsilon": h["eps"],
    },
}


class Replay:
    """Build the training step for one file of recorded values, and make its input batches."""

    def __init__(self, oracle: Oracle, name: str) -> None:
        self.oracle, self.name, self.h = oracle, name, oracle.json("hparams")
        h = self.h
        self.space = LabelSpace(tuple(map(str, range(h["num_classes"]))), h["multilabel"])
        kind = ALGORITHMS[name]
        assert h["algorithm"] == f"stssl_{name}"
        config_type = next(part for part in config_types(AlgorithmConfig) if part_name(part) == name)
        config = config_type(**OPTIONS[name](h))
        assert isinstance(config, BaseAlgorithmConfig)
        self.algorithm = kind(config, self.space, DataFacts(self._prior(), 100))
        size = (h["num_classes"], h["D"])
        self.teacher, self.student = Table(0, *size), Table(sum(size), *size)
        self.step = TeacherStudentStep(
            student=self.student,
            teacher=self.teacher,
            algorithm=self.algorithm,
            space=self.space,
            loss=LossConfig(
                unlabeled=float(h["ulb_loss_ratio"]),
                distillation=float(h["lambda_d"]),
                distance=DISTANCES[h["distill_loss_type"]],
            ),
            ema_decay=0.9,
            strong_labeled=False,
            supervised_start=0,
        )

    def _prior(self) -> Tensor:
        if "in_lb_label_freq" not in self.oracle:
            return torch.full((self.space.groups, self.space.choices), 1 / self.space.choices)
        frequency = torch.from_numpy(self.oracle["in_lb_label_freq"])
        return torch.stack([1 - frequency, frequency], -1)

    def batch(self, it: int) -> Batch:
        """Make the batch of iteration `it`: its images hold the recorded logits and features of both networks."""
        images = {}
        for short, view in VIEWS.items():
            if f"in_t_logits_{short}" not in self.oracle:
                continue
            rows = len(self.oracle[f"in_t_logits_{short}"][it])
            parts = []
            for who in "ts":
                for what, width in (("logits", self.h["num_classes"]), ("feat", self.h["D"])):
                    key = f"in_{who}_{what}_{short}"
                    parts.append(self.oracle[key][it] if key in self.oracle else np.zeros((rows, width), np.float32))
            images[view] = torch.from_numpy(np.concatenate(parts, 1))[..., None, None].requires_grad_()
        metadata = {view.stream: torch.zeros(len(image), 4) for view, image in images.items()}
        labels = self.space.targets(torch.from_numpy(self.oracle["in_y_lb"][it]))
        return Batch(images, metadata, labels, torch.arange(len(images[View.UNLABELED_WEAK])))

    def grouped(self, who: str, short: str, it: int) -> Tensor:
        return self.space.grouped(torch.from_numpy(self.oracle[f"in_{who}_logits_{short}"][it]))

    def outputs(self, it: int) -> LabelerOutputs:
        views = {view: self.grouped("t", short, it) for short, view in VIEWS.items() if view in self.algorithm.views}
        return LabelerOutputs(views, {}, torch.arange(self.h["U"]))


def check_algorithm(oracle: Oracle, name: str) -> None:
    replay = Replay(oracle, name)
    for it in range(replay.h["steps"]):
        if "in_bias_joint_head" in oracle:
            replay.teacher.blank = torch.from_numpy(oracle["in_bias_joint_head"][it])[None]
        batch, progress = replay.batch(it), Progress(it, replay.h["num_train_iter"])
        output = replay.step(batch, progress)
        output.loss.backward()
        terms = replay.algorithm.terms(replay.outputs(it), progress)
        check_terms(replay, terms, it)
        check_losses(replay, output.logs, terms, progress)
        check_distances(replay, it)
        check_gradients(replay, batch, it)
        check_state(replay, progress)


def check_terms(replay: Replay, terms: list[LossTerm], it: int) -> None:
    """Compare pseudo-labels and masks of an iteration with recorded ones. Hard labels must be equal."""
    for term, suffix in zip(terms, ("", "_lb"), strict=False):
        soft = term.target.dtype.is_floating_point
        target = replay.space.outputs(term.target) if soft else term.target
        weight = term.weight
        if not replay.space.multilabel:
            target, weight = target if soft else target[:, 0], weight[:, 0]
        replay.oracle.expect(f"out_pseudo{suffix}", target, it, exact=not soft)
        hard = bool(((weight == 0) | (weight == 1)).all())
        replay.oracle.expect(f"out_mask{suffix}", weight, it, exact=hard)
    replay.oracle.expect("out_util", terms[0].weight.mean(), it)


def check_losses(replay: Replay, logs: dict[str, Tensor], terms: list[LossTerm], progress: Progress) -> None:
    """Compare each loss of a step, and the total losses, with recorded values."""
    it, oracle, algorithm = progress.step, replay.oracle, replay.algorithm
    matching = not algorithm.waits(progress)
    if matching:
        torch.testing.assert_close(logs["pseudo_rate"], terms[0].weight.mean())
    totals = torch.zeros(())
    for who, network in (("t", "teacher"), ("s", "student")):
        oracle.expect(f"out_sup_{who}", logs[f"{network}_supervised"], it)
        if f"out_sup_{who}_parts" in oracle:
            oracle.expect(f"out_sup_{who}_parts", supervised_parts(replay, who, progress), it)
        parts = [term_loss(replay, who, term, progress) for term in terms]
        oracle.expect(f"out_unsup_{who}", parts[0], it)
        if len(parts) > 1:
            oracle.expect(f"out_anti_{who}", parts[1], it)
        total = logs[f"{network}_supervised"]
        if f"out_ent_{who}" in oracle:
            statistics = algorithm.statistics(replay.grouped(who, "ulb_s", it), terms[0])
            assert isinstance(algorithm, FreeMatch)
            oracle.expect(f"out_ent_{who}", algorithm.fairness(statistics), it)
            if matching:
                torch.testing.assert_close(logs[f"{network}_regularizer"], algorithm.regularizer(statistics))
                total = total + logs[f"{network}_regularizer"]
        if matching:
            signed = torch.stack([term.sign * loss for term, loss in zip(terms, parts, strict=True)]).sum()
            signed = signed if replay.h["ulb_loss_ratio"] else torch.zeros(())
            torch.testing.assert_close(logs[f"{network}_unlabeled"], signed, atol=1e-6, rtol=1e-5)
            total = total + replay.h["ulb_loss_ratio"] * logs[f"{network}_unlabeled"]
            if who == "s" and "distillation" in logs:
                total = total + replay.h["lambda_d"] * logs["distillation"]
        oracle.expect(f"out_total_{who}", total, it)
        totals = totals + total
    torch.testing.assert_close(logs["loss"], totals)


def term_loss(replay: Replay, who: str, term: LossTerm, progress: Progress) -> Tensor:
    short = next(short for short, view in VIEWS.items() if view is term.view)
    role: LossRole = "labeler" if who == "t" else "student"
    logits = replay.algorithm.adjust(replay.grouped(who, short, progress.step), role, term.view, progress)
    loss = replay.algorithm.unlabeled_loss(logits, term.target) * term.weight
    return loss.sum() / (term.weight.sum() + 1e-8) if term.by_weight else loss.mean()


def supervised_parts(replay: Replay, who: str, progress: Progress) -> Tensor:
    labels = replay.space.targets(torch.from_numpy(replay.oracle["in_y_lb"][progress.step]))
    logits = [replay.grouped(who, short, progress.step) for short in ("lb", "lb_s")]
    counts = known(labels).sum()
    return torch.stack([replay.algorithm.supervised_loss(each, labels).sum() / counts for each in logits])


def check_distances(replay: Replay, it: int) -> None:
    oracle = replay.oracle
    shorts = [short for short in ("lb", "lb_s", "ulb_s") if f"in_s_feat_{short}" in oracle]
    student, teacher = (
        torch.from_numpy(np.concatenate([oracle[f"in_{who}_feat_{short}"][it] for short in shorts])) for who in "st"
    )
    values = {"none": torch.zeros(())}
    for short in ("mse", "mae", "cos"):
        total, count = distance(DISTANCES[short], student, teacher)
        values[short] = total / count
        oracle.expect(f"out_distill_{short}", values[short], it)
    oracle.expect("out_distill", values[replay.h["distill_loss_type"]], it)


def check_gradients(replay: Replay, batch: Batch, it: int) -> None:
    classes, width = replay.h["num_classes"], replay.h["D"]
    for short, view in VIEWS.items():
        if view not in batch.images:
            continue
        gradient = batch.images[view].grad
        gradient = torch.zeros_like(batch.images[view]) if gradient is None else gradient
        for who, start in (("t", 0), ("s", classes + width)):
            for what, first, size in (("logits", start, classes), ("feat", start + classes, width)):
                own = gradient[:, first : first + size, 0, 0]
                if f"grad_{who}_{what}_{short}" in replay.oracle:
                    replay.oracle.expect(f"grad_{who}_{what}_{short}", own, it, **GRADIENT)
                else:
                    assert not own.any(), f"{who}_{what}_{short} must have no gradient"


def check_state(replay: Replay, progress: Progress) -> None:
    for name, value in STATE.get(replay.name, no_state)(replay, replay.algorithm, progress).items():
        shape = replay.oracle.right(name, progress.step).shape
        replay.oracle.expect(name, value.reshape(shape), progress.step)


def freematch_state(replay: Replay, algorithm: FreeMatch, progress: Progress) -> dict[str, Tensor]:
    outputs = replay.space.outputs
    return {
        "state_p_model": outputs(algorithm.marginal.value),
        "state_label_hist": outputs(algorithm.histogram.value),
        "state_time_p": algorithm.confidence.value,
    }


def softmatch_state(replay: Replay, algorithm: SoftMatch, progress: Progress) -> dict[str, Tensor]:
    outputs = replay.space.outputs
    return {
        "state_p_model": outputs(algorithm.marginal.value),
        "state_p_target": outputs(algorithm.target.value),
        "state_mu": algorithm.mean.value.T,
        "state_var": algorithm.variance.value.T,
        "out_aligned_probs": outputs(algorithm.aligned(replay.grouped("t", "ulb_w", progress.step))),
    }


def udal_state(replay: Replay, algorithm: Udal, progress: Progress) -> dict[str, Tensor]:
    outputs, target = replay.space.outputs, algorithm.target.value
    labeler, student = algorithm.labeler.value, algorithm.student.value
    return {
        "state_p_model": outputs(labeler),
        "state_p_target": outputs(target),
        "state_p_student": outputs(student),
        "out_adj_data": outputs(algorithm.ratio(target, progress)),
        "out_adj_model": outputs(algorithm.ratio(labeler, progress)),
        "out_adj_student": outputs(algorithm.ratio(student, progress)),
    }


def cap_state(replay: Replay, algorithm: Cap, progress: Progress) -> dict[str, Tensor]:
    ring, size = algorithm.ring, algorithm.ring.values.shape[1]
    state = {
        "state_queue_pointer": torch.tensor(ring.pushed % size),
        "state_queue_full": torch.tensor(ring.pushed >= size),
        "out_thre_vec": algorithm.cuts[0],
        "out_pos_thre": algorithm.cuts[1],
        "out_neg_thre": algorithm.cuts[2],
        "out_probs_ulb_w": presence(replay.grouped("t", "ulb_w", progress.step)),
    }
    return state | ({"state_queue": ring.values.T} if "state_queue" in replay.oracle else {})


def no_state(replay: Replay, algorithm: Algorithm, progress: Progress) -> dict[str, Tensor]:
    return {}


def cdmad_state(replay: Replay, algorithm: Cdmad, progress: Progress) -> dict[str, Tensor]:
    return {"out_bias_used": replay.space.outputs(algorithm.bias)}


STATE: dict[str, Callable[[Replay, Any, Progress], dict[str, Tensor]]] = {
    "freematch": freematch_state,
    "softmatch": softmatch_state,
    "udal": udal_state,
    "cap": cap_state,
    "cdmad": cdmad_state,
}
