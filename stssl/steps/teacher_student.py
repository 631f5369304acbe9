"""Take one training step of any semi-supervised algorithm: forward passes, losses, distillation, averaged weights.

A step has four parts:

1. Student and teacher predict the views that need gradients, once.
2. Without gradients, the labeler (the one of them that makes the pseudo-labels) predicts the views that the algorithm
   needs for pseudo-labels. If needed, it also predicts a blank image.
3. The algorithm observes the labeler's outputs for the global batch and returns loss terms.
4. The step computes the losses from all these outputs, as means over the global batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from stssl.algorithms import Algorithm, LabelerOutputs, Logits, LossRole, LossTerm
from stssl.algorithms.base import known
from stssl.base.batch import Batch, Progress, View
from stssl.base.distributed import sum_over_ranks, world_size
from stssl.base.labels import LabelSpace
from stssl.models import Network, Prediction
from stssl.models.ema import Ema, batchnorms, evaluating, frozen_statistics, reestimate_batchnorm, training_quietly
from stssl.steps.base import StepOutput, TrainingStep
from stssl.steps.gathering import Gathering
from stssl.steps.parts import (
    LossConfig,
    MatchPlan,
    Outputs,
    concatenate_views,
    distilled,
    join_labeler_outputs,
    join_logits,
    ordered,
    quality,
    ratio,
)
from stssl.steps.votes import Votes

__all__ = ["LossConfig", "MatchPlan", "TeacherStudentStep"]

LabelerMode = Literal["evaluation", "training"]
"""Mode of the labeler's forward pass. In `training` mode, drop path, dropout and BatchNorm act as for gradients."""
ModeSetter = Callable[[nn.Module], AbstractContextManager[None]]
"""A context manager that puts a network into evaluation or training mode."""


class TeacherStudentStep(TrainingStep):
    """Compute the loss of a training step for student and teacher with any semi-supervised algorithm.

    After each step, also update the averages of their weights (EMA).
    """

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
        labeler_mode: LabelerMode = "evaluation",
    ) -> None:
        """Store the networks and the algorithm, and copy the networks as the first averages of their weights.

        Args:
            student: Network that users get. It sees images. It sees metadata only in the role `direct`.
            teacher: Network that sees metadata and makes the pseudo-labels. If None, the student makes them.
            algorithm: Algorithm that makes the loss terms for unlabeled patches.
            space: Classes and kind of task.
            loss: Weights of the losses.
            ema_decay: Share of the old average weights that remains after one step.
            strong_labeled: True to average the supervised loss over weak and strong views; False for weak views only.
            supervised_start: Number of steps at the start that learn from labels only. The algorithm updates its state
                in these steps too.
            votes: Object that lets nearby patches vote on pseudo-labels; None for no votes.
            labeler_mode: Mode in which the labeler (the network that makes pseudo-labels) predicts for them.
        """
        super().__init__()
        named = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
        self.networks = nn.ModuleDict(named)
        self.averages = nn.ModuleDict({name: Ema(network, ema_decay) for name, network in named.items()})
        self.algorithm, self.space, self.loss = algorithm, space, loss
        self.supervised_start, self.votes = supervised_start, votes
        # In evaluation mode, BatchNorm uses the running statistics, which come from weak and strong views together. In
        # training mode, it would use only the weak views, and this would shift the labeler's predictions.
        self._labeling: ModeSetter = training_quietly if labeler_mode == "training" else evaluating
        self._gather = Gathering()
        both = strong_labeled or algorithm.strong_labeled
        self.supervised_views = [View.LABELED_WEAK] + ([View.LABELED_STRONG] if both else [])

    @property
    def labeler(self) -> str:
        """Return the name of the network that makes the pseudo-labels: `teacher`, or `student` without a teacher."""
        return "teacher" if "teacher" in self.networks else "student"

    @property
    def views_needed(self) -> frozenset[View]:
        """Return all augmented views (such as weak unlabeled patches) that at least one step of a run uses."""
        return frozenset(self._gradient_views(True)) | self.algorithm.views

    def views_at(self, progress: Progress) -> frozenset[View]:
        """Return the augmented views that the step at `progress` uses.

        They are fewer than those of the whole run if this step does not use unlabeled patches.
        """
        labeled = self.algorithm.views if self._needs_labeler(progress) else frozenset[View]()
        return frozenset(self._gradient_views(self._matching(progress))) | labeled

    def forward(self, batch: Batch, progress: Progress, plan: MatchPlan | None = None) -> StepOutput:
        """Return the loss of this rank's rows, and values to log. The mean over ranks is the loss of the global batch.

        Args:
            batch: This rank's rows, or a micro-batch of them.
            progress: Current step.
            plan: Plan of this micro-batch, made by the method `plan`; None if the batch holds all rows of this rank.
        """
        matching = self._matching(progress)
        views = self._gradient_views(matching)
        outputs = {name: self._forward_views(network, batch, views) for name, network in self._live()}
        if plan is None:
            logits = {name: output.logits for name, output in outputs.items()}
            plan = self._plan(batch, progress, self._labeler_outputs(batch, progress, logits), logits)
        losses: dict[str, Tensor] = {}
        for name, output in outputs.items():
            losses |= {f"{name}_{part}": loss for part, loss in self._losses(name, output, batch, progress, plan)}
        student, teacher = outputs["student"], outputs.get("teacher")
        if teacher is not None and matching and self.loss.distills:
            losses["distillation"] = self.loss.distillation * distilled(self.loss, student, teacher, plan.rows)
        # Add 0 times the student's contexts: DDP waits for the gradients of all parameters, so the context layer must
        # be in the graph of every step, even without distillation.
        total = torch.stack(list(losses.values())).sum() + 0.0 * concatenate_views(student.contexts).sum()
        logs = {name: self._unweighted(name, loss.detach()) for name, loss in losses.items()}
        return StepOutput(total, logs | {"loss": total.detach()} | quality(batch, plan, self.space))

    def plan(self, batch: Batch, progress: Progress, parts: int) -> list[MatchPlan]:
        """Make and return the plans (loss terms and denominators) of `parts` micro-batches of this rank.

        The caller then calls `forward` for each micro-batch. The algorithm must observe each step only once, with all
        rows. So this method predicts all micro-batches before `forward` computes any loss.

        Args:
            batch: This rank's rows.
            progress: Current step.
            parts: Number of micro-batches.

        Returns:
            The plan of each micro-batch.
        """
        micro_batches = list(batch.split(parts))
        previews = [self._logits_for_plan(micro_batch, progress) for micro_batch in micro_batches]
        outputs = [
            self._labeler_outputs(micro_batch, progress, logits)
            for micro_batch, logits in zip(micro_batches, previews, strict=True)
        ]
        logits = {name: join_logits([preview[name] for preview in previews]) for name in self.networks}
        return self._plan(batch, progress, join_labeler_outputs(outputs), logits).split(parts)

    def after_optimizer(self, bad: Tensor | None = None) -> None:
        """Move the averaged weights of student and teacher toward their current weights, in place.

        `bad` has no effect.
        """
        # Ignore `bad`: a skipped step leaves the networks as they were, so to move the averages once more toward them
        # does no harm.
        for name, network in self._live():
            self._ema(name).update(network)

    def predictor(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that predicts with the averaged weights of `student` or `teacher`.

        The function takes images [n, bands, height, width] and metadata [n, 4], and returns logits [n, classes]. It
        corrects the logits by those of a blank image if the algorithm does so (CDMAD).
        """
        network = self.averaged_network(name)

        def predict(image: Tensor, metadata: Tensor) -> Tensor:
            prediction: Prediction = network(image, metadata)
            if not self.algorithm.needs_blank:
                return prediction.logits
            return self.algorithm.calibrate(prediction.logits, self._blank(network, image))

        return predict

    def reestimate_batchnorm(self, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Compute the BatchNorm statistics of the networks with averaged weights anew, in place.

        All networks get the same batches, and each batch is made only once: for small networks, to make a batch takes
        most of the time.

        Args:
            batches: Function that returns batches: pairs of images [n, bands, height, width] and metadata [n, 4].
        """
        averaged = [network for network in map(self.averaged_network, self.averages) if batchnorms(network)]

        def run() -> Iterator[list[Prediction]]:
            return ([network(image, metadata) for network in averaged] for image, metadata in batches())

        reestimate_batchnorm(nn.ModuleList(averaged), run)

    def _matching(self, progress: Progress) -> bool:
        """Return True if the step at `progress` learns from unlabeled patches, not only from labeled ones."""
        return progress.step >= self.supervised_start and not self.algorithm.waits(progress)

    def _needs_labeler(self, progress: Progress) -> bool:
        """Return True if the step at `progress` needs predictions of the network that makes pseudo-labels.

        It needs them for loss terms, or to update the state of the algorithm.
        """
        return bool(self.algorithm.views) and (self.algorithm.stateful or self._matching(progress))

    def _gradient_views(self, matching: bool) -> list[View]:
        return self.supervised_views + ([View.UNLABELED_STRONG] if matching and self.algorithm.views else [])

    def _live(self) -> list[tuple[str, Network]]:
        return [(name, network) for name, network in self.networks.items() if isinstance(network, Network)]

    def _ema(self, name: str) -> Ema:
        average = self.averages[name]
        if not isinstance(average, Ema):
            raise TypeError(f"{name} is not an average")
        return average

    def averaged_network(self, name: str) -> Network:
        """Return the network that holds the averaged weights of `student` or `teacher`."""
        network = self._ema(name).network
        if not isinstance(network, Network):
            raise TypeError(f"{name} is not a network")
        return network

    def _role(self, name: str) -> LossRole:
        return "labeler" if name == self.labeler else "student"

    def _forward_views(self, network: nn.Module, batch: Batch, views: list[View]) -> Outputs:
        """Return a network's logits and context vectors for several views.

        All views go through the network as one batch, so that BatchNorm normalizes them together.

        Args:
            network: The network.
            batch: Images and metadata of the views.
            views: Wanted views.
        """
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
        """Yield the pair (name, value times its weight) for each loss of the network `name`, such as `student`.

        The names are `supervised`, `unlabeled` and `regularizer`. The last two come only if the plan asks for them.

        Args:
            name: Name of the network.
            output: Its outputs for all views.
            batch: Rows with labels.
            progress: Current step.
            plan: Loss terms and denominators for these rows.
        """
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
            # The value must be that of the global batch. But let gradients flow only through this micro-batch: the
            # other micro-batches and ranks add their own.
            value = algorithm.regularizer(plan.statistics[name] + world_size() * (local - local.detach()))
            yield "regularizer", value - value.detach() * (1 - 1 / plan.parts)

    def _unweighted(self, name: str, loss: Tensor) -> Tensor:
        """Return a loss divided by its weight in the recipe, because logs show losses without their weights.

        Args:
            name: Name of the loss, such as `student_unlabeled`.
            loss: Its value times its weight.
        """
        if name == "distillation":
            return loss / self.loss.distillation
        return loss / self.loss.unlabeled if name.endswith("_unlabeled") and self.loss.unlabeled else loss

    @torch.no_grad()
    def _logits_for_plan(self, batch: Batch, progress: Progress) -> dict[str, Logits]:
        """Return the logits of strong views that the algorithm needs for its plan, by network and view.

        The dict of a network is empty if the algorithm does not need its logits.

        Args:
            batch: Rows of this rank.
            progress: Current step.
        """
        algorithm, found = self.algorithm, dict[str, Logits]()
        for name, network in self._live():
            watched = algorithm.watches_student and self._role(name) == "student"
            wanted = self._matching(progress) and (watched or algorithm.regularized)
            found[name] = self._training_logits(network, batch, {View.UNLABELED_STRONG} if wanted else set())
        return found

    @torch.no_grad()
    def _training_logits(self, network: Network, batch: Batch, views: set[View]) -> dict[View, Tensor]:
        """Return a network's logits by view, computed in training mode.

        The network's BatchNorm statistics do not change.

        Args:
            network: The network.
            batch: Images and metadata of the views.
            views: Wanted views; may be empty.
        """
        if not views:
            return {}
        with frozen_statistics(network):
            return self._forward_views(network, batch, ordered(views)).logits

    @torch.no_grad()
    def _labeler_logits(self, network: Network, batch: Batch, views: frozenset[View]) -> dict[View, Tensor]:
        """Return the logits from which pseudo-labels are made, by view.

        Args:
            network: Network that makes the pseudo-labels. It predicts in the mode that the recipe sets for it.
            batch: Images and metadata of the views.
            views: Wanted views; may be empty.
        """
        if not views:
            return {}
        with self._labeling(network):
            return self._forward_views(network, batch, ordered(views)).logits

    def _labeler_outputs(self, batch: Batch, progress: Progress, logits: Mapping[str, Logits]) -> LabelerOutputs | None:
        """Return the predictions from which the algorithm makes pseudo-labels, for this rank's rows.

        Args:
            batch: This rank's rows.
            progress: Current step.
            logits: Logits that the networks have already computed in this step, by network and view.

        Returns:
            Logits of the network that makes the pseudo-labels and, if needed, of the student. None if this step needs
            no pseudo-labels.
        """
        algorithm = self.algorithm
        if not self._needs_labeler(progress):
            return None
        averaged = algorithm.config.labeler == "ema"
        network = self.averaged_network(self.labeler) if averaged else dict(self._live())[self.labeler]
        labeler_logits = self._labeler_logits(network, batch, algorithm.views)
        watched = [View.UNLABELED_STRONG] if algorithm.watches_student and self.labeler != "student" else []
        strong = {view: logits["student"][view].detach() for view in watched if view in logits["student"]}
        blank = None
        if algorithm.needs_blank:
            like = batch.images[View.UNLABELED_WEAK]
            blank = self.space.grouped(self._blank(network, like, self._labeling).float())
        return LabelerOutputs(labeler_logits, strong, batch.index, blank)

    @torch.no_grad()
    def _blank(self, network: Network, like: Tensor, mode: ModeSetter = evaluating) -> Tensor:
        """Return a network's logits [1, classes] for a blank image (all values 1).

        Args:
            network: The network. It gets no metadata.
            like: Images of the size and bands that the blank image gets.
            mode: Puts the network into evaluation or training mode meanwhile.
        """
        with mode(network):
            # Pass the blank image twice: in training mode, BatchNorm needs more than one value.
            prediction: Prediction = network(torch.ones_like(like[:1]).repeat(2, 1, 1, 1), None, inject=False)
        return prediction.logits[:1]

    @torch.no_grad()
    def _plan(
        self, batch: Batch, progress: Progress, outputs: LabelerOutputs | None, logits: Mapping[str, Logits]
    ) -> MatchPlan:
        """Let the algorithm observe the global batch, and return its loss terms and denominators for this rank's rows.

        Args:
            batch: This rank's rows.
            progress: Current step.
            outputs: Logits from which pseudo-labels are made, of this rank; None if the step needs none.
            logits: Logits that the networks have already computed in this step, by network and view.
        """
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
        # Put all denominators into one tensor, so that ranks exchange data only once.
        local = torch.stack([labels, *sizes, *counts])
        totals = list(sum_over_ranks(local) / world_size())
        return MatchPlan(terms, totals[3:], totals[0], totals[1], totals[2], statistics)
