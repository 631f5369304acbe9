"""Check encoders, averages, losses, scores, networks, schedules and whole trainings against recorded values."""

import re
from datetime import datetime
from typing import Any

import numpy as np
import torch
from oracle import GRADIENT, Oracle, Tolerance
from pydantic import JsonValue
from torch import Tensor, nn

from stssl.algorithms import DataFacts
from stssl.algorithms.fixmatch import FixMatch, FixMatchConfig
from stssl.algorithms.losses import Distance, asymmetric
from stssl.archives.base import time_values
from stssl.base.batch import Batch, Progress, Stream, View
from stssl.base.labels import LabelSpace
from stssl.models import Network, build_network
from stssl.models.backbones import make_backbone
from stssl.models.ema import Ema
from stssl.models.encoders import RawConfig
from stssl.models.network import NetworkRole
from stssl.models.sites import TokenConfig
from stssl.models.weights import load_weights
from stssl.recipes.optimizers import ScheduleConfig
from stssl.scoring.metrics import score
from stssl.steps.teacher_student import LossConfig, TeacherStudentStep
from stssl.store.schema import MISSING_DAY
from stssl.training.optim import clip_gradients, learning_rate, parameter_groups

DISTANCES: dict[str, Distance] = {"mse": "mse", "mae": "mae", "cos": "cosine", "none": "none"}
NETWORK: Tolerance = {"atol": 1e-5, "rtol": 1e-4}


def check_metainfo(oracle: Oracle) -> None:
    """Compare the days of the year and their encoding. If a recorded context is NaN, ours must be finite."""
    network = build_teacher({"img": 8, "patch": 4, "ch": 3, "C": 2, "dim": 8, "depth": 1, "heads": 1})
    for row, text in enumerate(oracle["date"]):
        when = datetime.fromisoformat(str(text)) if text else None
        day = time_values(when).get("day_of_year", MISSING_DAY)
        oracle.expect("day_of_year", day, row, exact=True)
        metadata = torch.tensor([[oracle["lat"][row], oracle["lng"][row], day, np.nan]], dtype=torch.float32)
        encoder = network.encoder
        assert encoder is not None
        place = encoder.place(metadata[:, 0], metadata[:, 1])
        date = encoder.date(metadata[:, 2], metadata[:, 3])
        oracle.expect("enc", torch.cat([place, date], 1)[0], row)
        metadata[metadata == MISSING_DAY] = torch.nan if when is None else MISSING_DAY
        assert torch.isfinite(encoder(metadata)).all()


def check_ema(oracle: Oracle) -> None:
    names = [name.removeprefix("init/") for name in oracle.names("init/")]
    live = nn.ParameterList(torch.from_numpy(oracle[f"init/{name}"].copy()) for name in names)
    average = Ema(live, float(oracle["decay"]))
    for it in range(len(oracle[f"param/{names[0]}"])):
        for parameter, name in zip(live, names, strict=True):
            parameter.data.copy_(torch.from_numpy(oracle[f"param/{name}"][it]))
        average.update(live)
        for own, name in zip(average.network.parameters(), names, strict=True):
            oracle.expect(f"shadow/{name}", own, it)


def check_asymmetric_loss(oracle: Oracle) -> None:
    space = LabelSpace(tuple(map(str, range(oracle["logits"].shape[1]))), True)
    for j, config in enumerate(oracle.json("configs")):
        logits = torch.from_numpy(oracle["logits"]).requires_grad_()
        loss = asymmetric(
            space.grouped(logits),
            torch.from_numpy(oracle["targets"]).long(),
            gamma_negative=config["gamma_neg"],
            gamma_positive=config["gamma_pos"],
            clip=config["clip"],
            detach_focus=config["disable_torch_grad_focal_loss"],
            epsilon=config["eps"],
        )
        loss.mean().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        oracle.expect(f"loss_none_{j}", loss)
        oracle.expect(f"loss_mean_{j}", loss.mean())
        oracle.expect(f"loss_sum_{j}", loss.sum())
        oracle.expect(f"grad_mean_{j}", logits.grad, **GRADIENT)


def check_metrics(oracle: Oracle, names: dict[str, str], multilabel: bool) -> None:
    logits, targets = torch.from_numpy(oracle["logits"]), torch.from_numpy(oracle["targets"])
    space = LabelSpace(tuple(map(str, range(logits.shape[1]))), multilabel)
    scores, _ = score(logits, space.targets(targets), space)
    for theirs, ours in names.items():
        oracle.expect(f"out_{theirs}", scores[ours])


MULTILABEL = {"loss": "loss", "AP": "mAP", "AP_micro": "mAP_micro", "F1": "F1", "F1_micro": "F1_micro"}
SINGLELABEL = {
    "loss": "loss",
    "top_1_acc": "accuracy",
    "balanced_acc": "balanced_accuracy",
    "precision": "precision",
    "recall": "recall",
    "F1": "F1",
}


def check_lr_schedule(oracle: Oracle) -> None:
    base = float(oracle["base_lr"])
    for name in oracle.names("total_warmup_"):
        total, warmup = map(int, oracle[name])
        rates = oracle.right(f"lr_{name.rsplit('_', 1)[1]}")
        ours = [learning_rate(step, ScheduleConfig(steps=total, warmup=warmup), base) for step in range(len(rates))]
        np.testing.assert_allclose(ours, rates, rtol=1e-9, atol=1e-15)


def check_pos_embed_resize(oracle: Oracle, folder: str) -> None:
    """Compare position embeddings that were resized to another square grid when weights were loaded."""
    before, after = (oracle[name].shape[1] for name in ("pos_embed", "out"))
    options = {"patch_size": 4, "embed_dim": oracle["pos_embed"].shape[2], "depth": 1, "num_heads": 1}
    sizes = [4 * round((count - 1) ** 0.5) for count in (before, after)]
    old, new = (
        make_backbone("vit_tiny_patch16_224", options, size=size, in_channels=3, classes=2, hub=False) for size in sizes
    )
    torch.save(old.state_dict() | {"pos_embed": torch.from_numpy(oracle["pos_embed"])}, f"{folder}/weights.pt")
    load_weights(new, f"{folder}/weights.pt")
    oracle.expect("out", new.pos_embed)


class Encoded(Network):
    """Replace an encoder of place and date: its input is already the context vector."""

    def _context(self, image: Tensor, metadata: Tensor | None) -> Tensor | None:
        return None if self.encoder is None else self.encoder.head(metadata)


def build_teacher(
    c: dict[str, Any], role: NetworkRole = "teacher", distill: bool = True, **options: JsonValue
) -> Network:
    network = build_network(
        backbone="vit_small_patch16_224",
        backbone_args={"patch_size": c["patch"], "embed_dim": c["dim"], "depth": c["depth"], "num_heads": c["heads"]}
        | options,
        image_size=c["img"],
        in_channels=c["ch"],
        classes=c["C"],
        encoder=RawConfig(),
        injection=TokenConfig(),
        role=role,
        weights="none",
        distill=distill,
    )
    network.__class__ = Encoded
    return network


def their_name(name: str, who: str) -> str:
    """Return the name that one of our parameters has in the state dict of the public implementation."""
    head = "joint_head" if who == "joint" else "student_head"
    name = re.sub(r"^backbone\.head\.", f"{head}.", name).replace("fc_norm.", "norm.")
    name = re.sub(r"^backbone\.", f"{who}_backbone.", name)
    name = re.sub(r"^site\.position$", f"{who}_backbone.metainfo_pos_embed", name)
    name = re.sub(r"^encoder\.head\.0\.", "metainfo_enc.fc1.", name)
    return re.sub(r"^encoder\.head\.2\.", "metainfo_enc.fc2.", name)


def load_theirs(network: Network, oracle: Oracle, prefix: str, who: str) -> None:
    for name, parameter in network.named_parameters():
        if f"{prefix}{their_name(name, who)}" in oracle:
            parameter.data.copy_(torch.from_numpy(oracle[f"{prefix}{their_name(name, who)}"]))
        else:
            assert "absent" in name, name


@torch.no_grad()
def check_early_fusion_vit(oracle: Oracle) -> None:
    c = oracle.json("config")
    image, metadata = torch.from_numpy(oracle["in_x"]), torch.from_numpy(oracle["in_metainfo"])
    teacher = build_teacher(c).eval()
    load_theirs(teacher, oracle, "sd/", "joint")
    context = teacher._context(image, metadata)
    oracle.expect("out_metainfo_embed", context, **NETWORK)
    tokens = teacher.features(image, context, teacher.site)
    oracle.expect("out_joint_tokens", tokens, **NETWORK)
    prediction = teacher(image, metadata)
    oracle.expect("out_joint_logits", prediction.logits, **NETWORK)
    oracle.expect("out_joint_meta_feat", prediction.context, **NETWORK)
    joint = teacher.backbone.forward_head(tokens[:, :-1], pre_logits=True)
    oracle.expect("out_joint_global_feat", joint, **NETWORK)
    for suffix, distill in (("metatoken1", True), ("metatoken0", False)):
        student = build_teacher(c, "student", distill).eval()
        load_theirs(student, oracle, "sd/", "student")
        tokens = student.features(image, None, student.site)
        prediction = student(image)
        oracle.expect(f"out_student_logits_{suffix}", prediction.logits, **NETWORK)
        oracle.expect(f"out_student_meta_feat_{suffix}", tokens[:, -1], **NETWORK)
        oracle.expect(f"out_student_global_feat_{suffix}", tokens[:, 0], **NETWORK)
        if distill:
            torch.testing.assert_close(prediction.context, tokens[:, -1])
    check_plain_backbone(oracle, c, image, joint)


def own_head(oracle: Oracle, who: str, feature: Tensor) -> Tensor:
    """Compute the output of an additional head of the public implementation, which that one never trains."""
    weight, bias = (torch.from_numpy(oracle[f"sd/{who}_backbone.head.{name}"]) for name in ("weight", "bias"))
    return nn.functional.linear(feature, weight, bias)


def check_plain_backbone(oracle: Oracle, c: dict[str, Any], image: Tensor, joint: Tensor) -> None:
    """Compare the outputs of backbones with their own heads; the teacher pools by averaging."""
    student = build_teacher(c, "student").eval()
    load_theirs(student, oracle, "sd/", "student")
    feature = student.features(image, None, student.site)[:, 0]
    oracle.expect("out_backbone_feat", feature, **NETWORK)
    oracle.expect("out_backbone_logits", own_head(oracle, "student", feature), **NETWORK)
    oracle.expect("out_backbone_meta_logits", own_head(oracle, "joint", joint), **NETWORK)
    pooled = build_teacher(c, global_pool="avg").eval()
    load_theirs(pooled, oracle, "sd/", "joint")
    metadata = torch.from_numpy(oracle["in_metainfo"])
    features, _ = pooled.site.leave(pooled.features(image, pooled._context(image, metadata), pooled.site))
    oracle.expect("out_avgpool_feat", pooled.backbone.forward_head(features, pre_logits=True), **NETWORK)


def check_e2e(oracle: Oracle) -> None:
    """Compare whole training steps: losses, learning rates, final weights and averages."""
    h = oracle.json("hparams")
    step = e2e_step(oracle, h)
    optimizer = e2e_optimizer(oracle, step, h)
    for it in range(len(oracle["out_lr"])):
        rate = learning_rate(it, ScheduleConfig(steps=h["num_train_iter"], warmup=h["num_warmup_iter"]), h["lr"])
        oracle.expect("out_lr", rate, it, rtol=1e-7, atol=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        output = step(e2e_batch(oracle, step.space, it), Progress(it, h["num_train_iter"]))
        output.loss.backward()
        clip_gradients([("all", step.networks)], h["clip_grad"] or None)
        optimizer.step()
        step.after_optimizer()
        check_e2e_losses(oracle, h, output.logs, it)
    for role, who in (("teacher", "joint"), ("student", "student")):
        network, average = step.networks[role], step.averages[role].network
        assert isinstance(network, Network) and isinstance(average, Network)
        check_e2e_weights(oracle, network, "final/", who)
        check_e2e_weights(oracle, average, "ema/", who)
        for name in oracle.names(f"init/{who}_backbone.head."):
            for prefix in ("final/", "ema/"):
                oracle.expect(name.replace("init/", prefix), oracle[name])


def e2e_step(oracle: Oracle, h: dict[str, Any]) -> TeacherStudentStep:
    c = {"img": h["img_size"], "patch": h["patch_size"], "dim": h["embed_dim"], "depth": h["depth"]}
    c |= {"ch": oracle["in_x_lb"].shape[2], "C": h["num_classes"], "heads": h["num_heads"]}
    teacher, student = build_teacher(c), build_teacher(c, "student")
    load_theirs(teacher, oracle, "init/", "joint")
    load_theirs(student, oracle, "init/", "student")
    space = LabelSpace(tuple(map(str, range(h["num_classes"]))), h["multilabel"])
    cut = h["p_cutoff"]
    band = (
        {"absent_below": cut[0], "present_above": cut[1]}
        if isinstance(cut, list)
        else {"threshold": cut, "absent_below": None, "present_above": None}
    )
    config = FixMatchConfig(soft=not h["hard_label"], temperature=float(h["T"]), **band)
    facts = DataFacts(torch.full((space.groups, space.choices), 1 / space.choices), 1)
    return TeacherStudentStep(
        student=student,
        teacher=teacher,
        algorithm=FixMatch(config, space, facts),
        space=space,
        loss=LossConfig(
            unlabeled=float(h["ulb_loss_ratio"]),
            distillation=float(h["lambda_d"]),
            distance=DISTANCES[h["distill_loss_type"]],
        ),
        ema_decay=h["ema_m"],
        strong_labeled=False,
        supervised_start=0,
    )


def e2e_optimizer(oracle: Oracle, step: TeacherStudentStep, h: dict[str, Any]) -> torch.optim.Optimizer:
    """Make AdamW with the parameter groups of the public implementation, which also decay tokens and positions."""
    decays = {name: group["weight_decay"] for group in oracle.json("param_groups") for name in group["params"]}
    ours = {
        id(p): group["weight_decay"]
        for group in parameter_groups(step.networks, h["weight_decay"])
        for p in group["params"]
    }
    groups = []
    for network, who in (("teacher", "joint"), ("student", "student")):
        for name, parameter in step.networks[network].named_parameters():
            decay = decays.get(their_name(name, who), 0.0)
            groups.append({"params": [parameter], "weight_decay": decay})
            assert ours[id(parameter)] == decay or re.search("token|pos_embed|position|absent", name), name
    return torch.optim.AdamW(groups, lr=h["lr"])


def e2e_batch(oracle: Oracle, space: LabelSpace, it: int) -> Batch:
    def array(name: str) -> Tensor:
        return torch.from_numpy(oracle[f"in_{name}"][it])

    images = {
        View.LABELED_WEAK: array("x_lb"),
        View.UNLABELED_WEAK: array("x_ulb_w"),
        View.UNLABELED_STRONG: array("x_ulb_s"),
    }
    metadata = {Stream.LABELED: array("metainfo_lb"), Stream.UNLABELED: array("metainfo_ulb")}
    return Batch(images, metadata, space.targets(array("y_lb")), torch.arange(len(images[View.UNLABELED_WEAK])))


def check_e2e_losses(oracle: Oracle, h: dict[str, Any], logs: dict[str, Tensor], it: int) -> None:
    oracle.expect("out_util_ratio", logs["pseudo_rate"], it)
    distillation = logs.get("distillation", torch.zeros(()))
    oracle.expect("out_student_distill_loss", distillation, it)
    for network, prefix, extra in (("teacher", "", 0.0), ("student", "student_", h["lambda_d"] * distillation)):
        supervised, unlabeled = logs[f"{network}_supervised"], logs[f"{network}_unlabeled"]
        oracle.expect(f"out_{prefix}sup_loss", supervised, it)
        oracle.expect(f"out_{prefix}unsup_loss", unlabeled, it)
        oracle.expect(f"out_{prefix}total_loss", supervised + h["ulb_loss_ratio"] * unlabeled + extra, it)


def check_e2e_weights(oracle: Oracle, network: Network, prefix: str, who: str) -> None:
    for name, parameter in network.named_parameters():
        key = prefix + their_name(name, who)
        if key not in oracle:
            continue
        ours, theirs = parameter.detach().numpy().copy(), oracle[key]
        if key.endswith("attn.qkv.bias"):
            # Leave out the bias of keys: its true gradient is 0, and AdamW turns rounding errors into full steps.
            third = len(ours) // 3
            ours, theirs = np.delete(ours, range(third, 2 * third)), np.delete(theirs, range(third, 2 * third))
        np.testing.assert_allclose(ours, theirs, **NETWORK, err_msg=key)
