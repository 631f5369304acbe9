"""The one step of all semi-supervised algorithms: forward passes, losses, distillation, averaged weights.

Order in a step: views that need gradients go through each network once, their logits detached for the labeler; then
the views that only the labeler looks at (and the blank image), without gradients; the algorithm observes and says what
should match what; then losses, with denominators of the global batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from stssl.algorithms import Algorithm, LabelerOutputs, Logits, LossRole, LossTerm
from stssl.algorithms.base import known
from stssl.base.batch import Batch, Progress, View
from stssl.base.distributed import sum_over_ranks, world_size
from stssl.base.labels import LabelSpace
from stssl.models import Network, Prediction
from stssl.models.ema import Ema, evaluating, frozen_statistics, reestimate_batchnorm
from stssl.steps.base import StepOutput, TrainingStep
from stssl.steps.gathering import Gathering
from stssl.steps.parts import (
    LossConfig,
    MatchPlan,
    Outputs,
    concatenate_views,
    distilled,
    joined_looks,
    joined_views,
    ordered,
    quality,
    ratio,
)
from stssl.steps.votes import Votes

__all__ = ["LossConfig", "MatchPlan", "TeacherStudentStep"]


class TeacherStudentStep(TrainingStep):
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
        votes: Votes | None = None,
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
            supervised_start: Steps that learn from labels only; an algorithm with state already follows predictions.
            votes: Patches nearby that vote on pseudo-labels, if any.
        """
        super().__init__()
        named = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
        self.networks = nn.ModuleDict(named)
        self.averages = nn.ModuleDict({name: Ema(network, ema_decay) for name, network in named.items()})
        self.algorithm, self.space, self.loss = algorithm, space, loss
        self.supervised_start, self.votes = supervised_start, votes
        self._gather = Gathering()
        both = strong_labeled or algorithm.strong_labeled
        self.supervised_views = [View.LABELED_WEAK] + ([View.LABELED_STRONG] if both else [])

    @property
    def labeler(self) -> str:
        """Name of the network whose weak-view predictions become pseudo-labels."""
        return "teacher" if "teacher" in self.networks else "student"

    @property
    def views_needed(self) -> frozenset[View]:
        """All views that some step of a run may look at."""
        return frozenset(self._gradient_views(True)) | self.algorithm.views

    def views_at(self, progress: Progress) -> frozenset[View]:
        """The views that one step looks at: before it learns from more than labels, fewer than later."""
        asked = self.algorithm.views if self._asks(progress) else frozenset[View]()
        return frozenset(self._gradient_views(self._matching(progress))) | asked

    def forward(self, batch: Batch, progress: Progress, plan: MatchPlan | None = None) -> StepOutput:
        """Loss of this rank's rows, scaled so that the mean over ranks is the global batch's.

        Args:
            batch: This rank's rows, or a micro-batch of them.
            progress: Which step this is.
            plan: What `plan` made for this micro-batch; made here when the batch is whole.
        """
        matching = self._matching(progress)
        views = self._gradient_views(matching)
        outputs = {name: self._see(network, batch, views) for name, network in self._live()}
        if plan is None:
            logits = {name: output.logits for name, output in outputs.items()}
            plan = self._plan(batch, progress, self._look(batch, progress, logits), logits)
        losses: dict[str, Tensor] = {}
        for name, output in outputs.items():
            losses |= {f"{name}_{part}": loss for part, loss in self._losses(name, output, batch, progress, plan)}
        student, teacher = outputs["student"], outputs.get("teacher")
        if teacher is not None and matching and self.loss.distills:
            losses["distillation"] = self.loss.distillation * distilled(self.loss, student, teacher, plan.rows)
        total = torch.stack(list(losses.values())).sum() + 0.0 * concatenate_views(student.contexts).sum()
        logs = {name: self._unweighted(name, loss.detach()) for name, loss in losses.items()}
        return StepOutput(total, logs | {"loss": total.detach()} | quality(batch, plan, self.space))

    def plan(self, batch: Batch, progress: Progress, parts: int) -> list[MatchPlan]:
        """Plan each of `parts` micro-batches from all rows; call `forward` on each part afterwards.

        Args:
            batch: This rank's rows.
            progress: The step about to be taken.
            parts: Number of micro-batches.
        """
        micro_batches = list(batch.split(parts))
        previews = [self._preview(micro_batch, progress) for micro_batch in micro_batches]
        looks = [
            self._look(micro_batch, progress, logits)
            for micro_batch, logits in zip(micro_batches, previews, strict=True)
        ]
        logits = {name: joined_views([preview[name] for preview in previews]) for name in self.networks}
        return self._plan(batch, progress, joined_looks(looks), logits).split(parts)

    def after_optimizer(self, bad: Tensor | None = None) -> None:
        """Move the averages; a step that was left out has left the networks as they were."""
        for name, network in self._live():
            self.averages[name].update(network)  # type: ignore[operator]

    def predictor(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The averaged `student` or `teacher` as a function of images and metadata [n, 4] to logits [n, C].

        Logits are calibrated where the algorithm does that.
        """
        network = self._average(name)

        def predict(image: Tensor, metadata: Tensor) -> Tensor:
            prediction: Prediction = network(image, metadata)
            if not self.algorithm.needs_blank:
                return prediction.logits
            return self.algorithm.calibrate(prediction.logits, self._blank(network, image))

        return predict

    def reestimate_batchnorm(self, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Estimate the averages' BatchNorm statistics anew from images and metadata."""
        for name in self.averages:
            network = self._average(name)

            def run(network: Network = network) -> Iterator[Prediction]:
                return (network(image, metadata) for image, metadata in batches())

            reestimate_batchnorm(network, run)

    def _matching(self, progress: Progress) -> bool:
        """True if this step learns from unlabeled patches too."""
        return progress.step >= self.supervised_start and not self.algorithm.waits(progress)

    def _asks(self, progress: Progress) -> bool:
        """True if this step needs the labeler, for loss terms or for the algorithm's state."""
        return bool(self.algorithm.views) and (self.algorithm.stateful or self._matching(progress))

    def _gradient_views(self, matching: bool) -> list[View]:
        return self.supervised_views + ([View.UNLABELED_STRONG] if matching and self.algorithm.views else [])

    def _live(self) -> list[tuple[str, Network]]:
        return [(name, network) for name, network in self.networks.items() if isinstance(network, Network)]

    def _average(self, name: str) -> Network:
        network = self.averages[name].network
        if not isinstance(network, Network):
            raise TypeError(f"{name} is not a network")
        return network

    def _role(self, name: str) -> LossRole:
        return "labeler" if name == self.labeler else "student"

    def _see(self, network: nn.Module, batch: Batch, views: list[View]) -> Outputs:
        """One forward pass over the concatenated views."""
        images = torch.cat([batch.images[view] for view in views])
        metadata = torch.cat([batch.metadata[view.stream] for view in views])
        prediction: Prediction = network(images, metadata)
        sizes = [len(batch.images[view]) for view in views]
        logits = torch.split(self.space.grouped(prediction.logits.float()), sizes)
        contexts = torch.split(prediction.context.float(), sizes)
        return Outputs(dict(zip(views, logits, strict=True)), dict(zip(views, contexts, strict=True)))

    def _losses(
        self, name: str, output: Outputs, batch: Batch, progress: Progress, plan: MatchPlan
    ) -> Iterator[tuple[str, Tensor]]:
        """One network's weighted losses by name."""
        algorithm, role = self.algorithm, self._role(name)
        logits = {view: algorithm.adjust(value, role, view, progress) for view, value in output.logits.items()}
        known_labels = [algorithm.supervised_loss(logits[view], batch.labels).sum() for view in self.supervised_views]
        yield "supervised", ratio(torch.stack(known_labels).mean(), plan.labels)
        if plan.terms:
            matched = [
                ratio(term.sign * (algorithm.unlabeled_loss(logits[term.view], term.target) * term.weight).sum(), count)
                for term, count in zip(plan.terms, plan.counts, strict=True)
            ]
            yield "unlabeled", self.loss.unlabeled * torch.stack(matched).sum()
        if name in plan.statistics:
            local = algorithm.statistics(logits[plan.terms[0].view], plan.terms[0])
            # The value is the global batch's; gradients flow through this block's part of the sums.
            value = algorithm.regularizer(plan.statistics[name] + world_size() * (local - local.detach()))
            yield "regularizer", value - value.detach() * (1 - 1 / plan.parts)

    def _unweighted(self, name: str, loss: Tensor) -> Tensor:
        """A loss as it is logged: without the weight it has in the sum."""
        if name == "distillation":
            return loss / self.loss.distillation
        return loss / self.loss.unlabeled if name.endswith("_unlabeled") and self.loss.unlabeled else loss

    @torch.no_grad()
    def _preview(self, batch: Batch, progress: Progress) -> dict[str, Logits]:
        """Logits of strong views, where a plan needs them before losses are taken."""
        algorithm, found = self.algorithm, dict[str, Logits]()
        for name, network in self._live():
            watched = algorithm.watches_student and self._role(name) == "student"
            wanted = self._matching(progress) and (watched or algorithm.regularized)
            found[name] = self._peek(network, batch, {View.UNLABELED_STRONG} if wanted else set())
        return found

    @torch.no_grad()
    def _peek(self, network: Network, batch: Batch, views: set[View]) -> dict[View, Tensor]:
        """A network's logits of some views as in training, leaving its BatchNorm statistics alone."""
        if not views:
            return {}
        with frozen_statistics(network):
            return self._see(network, batch, ordered(views)).logits

    @torch.no_grad()
    def _ask(self, network: Network, batch: Batch, views: frozenset[View]) -> dict[View, Tensor]:
        """Compute the labeler's logits of all views that the algorithm compares, in evaluation mode.

        Running statistics are what weak and strong views together gave, and what the network is used to; those of the
        weak views alone would shift its answers.
        """
        if not views:
            return {}
        with evaluating(network):
            return self._see(network, batch, ordered(views)).logits

    def _look(self, batch: Batch, progress: Progress, logits: Mapping[str, Logits]) -> LabelerOutputs | None:
        """Collect what the algorithm observes of this rank's rows, or None; `logits` are those already computed."""
        algorithm = self.algorithm
        if not self._asks(progress):
            return None
        averaged = algorithm.config.labeler == "ema"
        network = self._average(self.labeler) if averaged else dict(self._live())[self.labeler]
        labeler_logits = self._ask(network, batch, algorithm.views)
        watched = [View.UNLABELED_STRONG] if algorithm.watches_student and self.labeler != "student" else []
        strong = {view: logits["student"][view].detach() for view in watched if view in logits["student"]}
        blank = None
        if algorithm.needs_blank:
            blank = self.space.grouped(self._blank(network, batch.images[View.UNLABELED_WEAK]).float())
        return LabelerOutputs(labeler_logits, strong, batch.index, blank)

    @torch.no_grad()
    def _blank(self, network: Network, like: Tensor) -> Tensor:
        """[1, C] what a network says of an image without content, in evaluation mode and without metadata token."""
        with evaluating(network):
            prediction: Prediction = network(torch.ones_like(like[:1]), None, inject=False)
        return prediction.logits

    @torch.no_grad()
    def _plan(
        self, batch: Batch, progress: Progress, outputs: LabelerOutputs | None, logits: Mapping[str, Logits]
    ) -> MatchPlan:
        """Let the algorithm observe and say what to match; sum denominators over ranks."""
        algorithm, terms = self.algorithm, list[LossTerm]()
        matching = self._matching(progress)
        if outputs is not None:
            votes = self.votes
            everyone = self._gather(outputs) if algorithm.stateful or votes else outputs
            if votes:
                votes.observe(everyone)
                outputs = votes.with_votes(outputs)
            if algorithm.stateful:
                algorithm.observe(votes.with_votes(everyone) if votes else everyone, progress)
            terms = algorithm.terms(outputs, progress) if matching else []
        statistics: dict[str, Tensor] = {}
        if algorithm.regularized and terms:
            for name, views in logits.items():
                strong = algorithm.adjust(views[terms[0].view], self._role(name), terms[0].view, progress)
                statistics[name] = sum_over_ranks(algorithm.statistics(strong, terms[0]))
        rows = sum(len(batch.images[view]) for view in self._gradient_views(matching))
        decisions = terms[0].weight.numel() if terms else 0
        counts = [term.weight.sum() if term.by_weight else known(term.target).sum() for term in terms]
        labels = known(batch.labels).sum()
        sizes = [torch.full_like(labels, value) for value in (rows, decisions)]
        local = torch.stack([labels, *sizes, *counts])
        totals = list(sum_over_ranks(local) / world_size())
        return MatchPlan(terms, totals[3:], totals[0], totals[1], totals[2], statistics)
