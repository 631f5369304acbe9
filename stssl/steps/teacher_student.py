"""The one step of all semi-supervised algorithms: forward passes, losses, distillation, averaged weights.

Order in a step: views that need gradients go through each network once, their logits detached for the labeler; then
the views that only the labeler looks at, without gradients; the algorithm observes and says what should match what;
then losses, with denominators of the global batch.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.algorithms import Algorithm, Term
from stssl.algorithms.base import Logits, known
from stssl.batch import Batch, Progress, Stream, View, block
from stssl.config import Config, Domain
from stssl.distributed import gather_rows, sum_over_ranks, world_size
from stssl.labels import LabelSpace
from stssl.losses import Distance, distance, divergence
from stssl.models import Network, Prediction
from stssl.models.ema import Ema, frozen_statistics, reestimate_batchnorm

Weight = Annotated[float, Field(ge=0)]


class LossConfig(Config):
    """Weights of the unlabeled and the distillation loss, and what distillation compares."""

    unlabeled: Annotated[float, Field(ge=0), Domain(0.1, 10.0, log=True)] = 1.0
    distillation: Annotated[float, Field(ge=0), Domain(0.001, 10.0, log=True)] = 1.0
    distance: Distance = "mse"
    temperature: Annotated[float, Field(gt=0), Domain(1.0, 8.0)] = 2.0

    @property
    def distills(self) -> bool:
        """Whether the student learns from the teacher's context."""
        return self.distance != "none" and self.distillation > 0


@dataclass(frozen=True)
class Plan:
    """What one block of rows is to match, with the global batch's denominators, a rank (scalars)."""

    terms: list[Term]
    term_counts: list[Tensor]
    supervised_count: Tensor
    context_rows: Tensor


@dataclass(frozen=True)
class StepOutput:
    """The loss to differentiate, and detached scalars whose mean over ranks is the global batch's value."""

    loss: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class _Seen:
    """One network's outputs: of each view grouped logits [n, G, K] and contexts [n, D]."""

    logits: dict[View, Tensor]
    contexts: dict[View, Tensor]


class TeacherStudentStep(nn.Module):
    """Owns student, teacher, their averages and the algorithm; `forward` is one step's loss."""

    def __init__(
        self,
        *,
        student: Network,
        teacher: Network | None,
        algorithm: Algorithm,
        space: LabelSpace,
        loss: LossConfig,
        ema_decay: float,
        strong_labeled: bool,
        supervised_start: int,
    ) -> None:
        """Put the parts together.

        Args:
            student: Sees images (and metadata only in its `direct` role).
            teacher: Sees metadata too; without one the student labels for itself.
            algorithm: Says what to match.
            space: The kind of task.
            loss: Weights.
            ema_decay: Of the averaged weights.
            strong_labeled: Whether the supervised loss is the mean over weak and strong views.
            supervised_start: Steps that learn from labels only.
        """
        super().__init__()
        named = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
        self.networks = nn.ModuleDict(named)
        self.averages = nn.ModuleDict({name: Ema(network, ema_decay) for name, network in named.items()})
        self.algorithm, self.space, self.loss = algorithm, space, loss
        self.supervised_start = supervised_start
        self.supervised_views = [View.LABELED_WEAK] + ([View.LABELED_STRONG] if strong_labeled else [])

    @property
    def labeler(self) -> str:
        """Name of the network whose weak-view predictions become pseudo-labels."""
        return "teacher" if "teacher" in self.networks else "student"

    @property
    def views_needed(self) -> frozenset[View]:
        """All views that some step of the run looks at."""
        return frozenset(self._gradient_views(True)) | self.algorithm.views

    def _gradient_views(self, active: bool) -> list[View]:
        matched = [View.UNLABELED_STRONG] if active and self.algorithm.views else []
        return self.supervised_views + matched

    def _active(self, progress: Progress) -> bool:
        return progress.step >= self.supervised_start and bool(self.algorithm.views)

    def forward(self, batch: Batch, progress: Progress, plan: Plan | None = None) -> StepOutput:
        """Loss of this rank's rows, scaled so that the mean over ranks is the global batch's.

        Args:
            batch: This rank's rows, or a micro-batch of them.
            progress: Which step this is.
            plan: What `plan` made for this micro-batch; made here when the batch is whole.
        """
        active = self._active(progress)
        views = self._gradient_views(active)
        seen = {name: self._see(network, batch, views) for name, network in self._live()}
        if plan is None:
            plan = self._plan(batch, progress, seen[self.labeler].logits)
        logs: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.labels.device)
        for name, outputs in seen.items():
            supervised = self._supervised(outputs, batch, plan)
            logs[f"{name}_supervised"] = supervised
            total = total + supervised
            if active:
                unlabeled = self._unlabeled(outputs, plan)
                logs[f"{name}_unlabeled"] = unlabeled
                total = total + self.loss.unlabeled * unlabeled
        distilled = self._distilled(seen, plan)
        if active and self.loss.distills and "teacher" in seen:
            logs["distillation"] = distilled
            total = total + self.loss.distillation * distilled
        else:
            total = total + 0.0 * distilled
        logs |= {"loss": total} | self._quality(batch, plan)
        return StepOutput(total, {name: value.detach() for name, value in logs.items()})

    def plan(self, batch: Batch, progress: Progress, parts: int) -> list[Plan]:
        """What each of `parts` micro-batches is to match: labels first, from all rows, then `forward` on each part."""
        with torch.no_grad():
            chunks = [self._labels_of(part, []) for part in batch.split(parts)]
            views = chunks[0].keys()
            logits = {view: torch.cat([chunk[view] for chunk in chunks]) for view in views}
            whole = self._plan(batch, progress, logits)
        return [replace(whole, terms=[_block(term, part, parts) for term in whole.terms]) for part in range(parts)]

    def after_optimizer(self) -> None:
        """Move the averages; call after each optimiser step."""
        for name, network in self._live():
            self.averages[name].update(network)  # type: ignore[operator]

    def predictor(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The averaged `student` or `teacher` as a function of images and metadata [n, 4] to logits [n, C]."""
        network = self._average(name)

        def predict(image: Tensor, metadata: Tensor) -> Tensor:
            prediction: Prediction = network(image, metadata)
            return prediction.logits

        return predict

    def reestimate_batchnorm(self, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Estimate the averages' BatchNorm statistics anew from images and metadata."""
        for name in self.averages:
            network = self._average(name)

            def run(network: Network = network) -> Iterator[Prediction]:
                return (network(image, metadata) for image, metadata in batches())

            reestimate_batchnorm(network, run)

    def _live(self) -> list[tuple[str, Network]]:
        return [(name, network) for name, network in self.networks.items() if isinstance(network, Network)]

    def _average(self, name: str) -> Network:
        network = self.averages[name].network
        if not isinstance(network, Network):
            raise TypeError(f"{name} is not a network")
        return network

    def _see(self, network: nn.Module, batch: Batch, views: list[View]) -> _Seen:
        """One forward pass over the concatenated views."""
        images = torch.cat([batch.images[view] for view in views])
        metadata = torch.cat([batch.metadata[view.stream] for view in views])
        prediction: Prediction = network(images, metadata)
        sizes = [len(batch.images[view]) for view in views]
        logits = torch.split(self.space.grouped(prediction.logits.float()), sizes)
        contexts = torch.split(prediction.context.float(), sizes)
        return _Seen(dict(zip(views, logits, strict=True)), dict(zip(views, contexts, strict=True)))

    @torch.no_grad()
    def _labels_of(self, batch: Batch, done: Iterable[tuple[View, Tensor]]) -> dict[View, Tensor]:
        """The labeler's logits of the views that the algorithm looks at; `done` are those it has already."""
        logits = {view: value.detach() for view, value in done}
        if self.algorithm.config.labeler == "ema":
            logits, network = {}, self._average(self.labeler)
        else:
            network = dict(self._live())[self.labeler]
        missing = sorted(self.algorithm.views - logits.keys(), key=lambda view: view.value)
        if missing:
            with frozen_statistics(network):
                logits |= self._see(network, batch, missing).logits
        return {view: logits[view] for view in self.algorithm.views}

    @torch.no_grad()
    def _plan(self, batch: Batch, progress: Progress, seen: Logits) -> Plan:
        labels = known(batch.labels)
        terms: list[Term] = []
        if self._active(progress):
            logits = self._labels_of(batch, seen.items())
            if self.algorithm.stateful:
                gathered = {view: gather_rows(value) for view, value in logits.items()}
                self.algorithm.observe(gathered, gather_rows(batch.index), progress)
            terms = self.algorithm.terms(logits, progress)
        counts = [term.weight.sum() if term.by_weight else known(term.target).sum() for term in terms]
        rows = sum(len(batch.images[view]) for view in self._gradient_views(self._active(progress)))
        local = torch.stack([labels.new_tensor(float(rows)), labels.sum(), *counts])
        totals = sum_over_ranks(local) / world_size()
        return Plan(terms, list(totals[2:]), supervised_count=totals[1], context_rows=totals[0])

    def _supervised(self, seen: _Seen, batch: Batch, plan: Plan) -> Tensor:
        """Mean over views of the loss on known labels."""
        losses = [self.algorithm.criterion(seen.logits[view], batch.labels).sum() for view in self.supervised_views]
        return torch.stack(losses).mean() / plan.supervised_count.clamp_min(1e-8)

    def _unlabeled(self, seen: _Seen, plan: Plan) -> Tensor:
        total = torch.zeros((), device=plan.supervised_count.device)
        for term, count in zip(plan.terms, plan.term_counts, strict=True):
            loss = self.algorithm.criterion(seen.logits[term.view], term.target)
            total = total + term.sign * (loss * term.weight).sum() / count.clamp_min(1e-8)
        return total

    def _distilled(self, seen: dict[str, _Seen], plan: Plan) -> Tensor:
        """Distance of the contexts over all gradient views; keeps the student's context in every step's graph."""
        student = seen["student"]
        contexts = torch.cat(list(student.contexts.values()))
        if "teacher" not in seen or not self.loss.distills:
            return contexts.sum() * 0.0
        teacher = seen["teacher"]
        if self.loss.distance == "logits":
            own, other = (torch.cat(list(outputs.logits.values())) for outputs in (student, teacher))
            total, count = divergence(own, other, self.loss.temperature)
        else:
            total, count = distance(self.loss.distance, contexts, torch.cat(list(teacher.contexts.values())))
        return total / (count / len(contexts)) / plan.context_rows

    @torch.no_grad()
    def _quality(self, batch: Batch, plan: Plan) -> dict[str, Tensor]:
        """Share of unlabeled decisions that carry weight, and where the truth is known, how often they are right."""
        if not plan.terms:
            return {}
        term, count = plan.terms[0], plan.term_counts[0]
        size = count if not term.by_weight else torch.as_tensor(float(term.weight.numel()), device=count.device)
        logs = {"pseudo_rate": term.weight.sum() / size}
        if batch.truth is None or term.view.stream is not Stream.UNLABELED:
            return logs
        ways = term.target.argmax(-1) if term.target.dtype.is_floating_point else term.target
        truth_known = known(batch.truth) > 0
        claimed = (term.weight > 0) & self.space.claims(ways) & truth_known
        actual = self.space.claims(batch.truth) & truth_known
        right = claimed & (ways == batch.truth)
        parts = {"pseudo_claimed": claimed, "pseudo_actual": actual, "pseudo_right": right}
        return logs | {name: value.sum() / size for name, value in parts.items()}


def _block(term: Term, part: int, parts: int) -> Term:
    return replace(term, target=block(term.target, part, parts), weight=block(term.weight, part, parts))
