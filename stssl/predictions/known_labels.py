"""Find known labels of patches, to score a model against them. Match their classes with the model's classes by name."""

import numpy as np
import pyarrow
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.errors import ConfigError
from stssl.base.labels import LabelSpace
from stssl.predictions.patches import PatchBatch, PatchSource


class KnownLabels:
    """Collect the known labels of patches batch by batch, as numbers of a model's classes, to score the model.

    Attributes:
        name: Name of the label set, which is a metadata column of the patches.
        notes: Remarks for the user on classes of the label set that the model lacks; empty if it has all.
    """

    def __init__(self, name: str, own: LabelSpace, space: LabelSpace) -> None:
        """Match the classes of a label set with those of a model, by name.

        Args:
            name: Name of the label set.
            own: Classes of the label set, and whether a patch may have several.
            space: Classes of the model.
        """
        self.name, self._own, self._space = name, own, space
        self._places = [space.classes.index(one) if one in space.classes else -1 for one in own.classes]
        strangers = [one for one in own.classes if one not in space.classes]
        effect = "scores leave these classes out" if own.multilabel else "patches with these do not count in scores"
        self.notes = (f"{name}: the model does not know {', '.join(strangers[:5])}: {effect}",) if strangers else ()
        self._targets: list[Tensor] = []

    @classmethod
    def find(cls, source: PatchSource, space: LabelSpace, name: str | None) -> "KnownLabels | None":
        """Choose the label set of a source (such as a store) that a model can be scored against.

        Args:
            source: Source of the patches.
            space: Classes of the model, and whether a patch may have several.
            name: Name of the label set; None chooses the one that shares most classes with the model.

        Returns:
            A new object, which can collect the labels of the chosen set; None if no set shares a class with the model.

        Raises:
            ConfigError: The source has no label set `name`, or it does not fit the model.
        """
        fitting: dict[str, tuple[int, KnownLabels]] = {}
        for one in source.label_sets:
            about = source.columns[one].attributes
            listed, several = about["classes"], about["kind"] == "multi-label"
            classes = tuple(map(str, listed)) if isinstance(listed, list) else ()
            shared = len(set(classes) & set(space.classes))
            if shared and several == space.multilabel:
                fitting[one] = (shared, cls(one, LabelSpace(classes, several), space))
        if name is not None and name not in fitting:
            has = ", ".join(source.label_sets) or "none"
            kind = "several classes" if space.multilabel else "one class"
            raise ConfigError(
                f"--labels {name}: {source.place} has no such labels with the model's classes and {kind} a patch "
                f"(its label sets: {has})."
            )
        if not fitting:
            return None
        return fitting[name or max(fitting, key=lambda one: fitting[one][0])][1]

    def add(self, batch: PatchBatch) -> None:
        """Add the labels of a batch of patches to those collected.

        If a patch has one class, a class that the model lacks counts as unknown. If it may have several, such a class
        is left out.

        Args:
            batch: The patches, with the label set among their metadata columns.
        """
        labels = torch.from_numpy(np.array(batch.columns[self.name]))
        own = self._own.targets(labels)
        places = torch.tensor(self._places)
        if not self._own.multilabel:
            known = own[:, 0] >= 0
            chosen = torch.where(known, places[own[:, 0].clamp_min(0)], -1)
            self._targets.append(torch.where(chosen >= 0, chosen, IGNORED)[:, None])
            return
        out = torch.full((len(own), len(self._space.classes)), IGNORED)
        for column, place in enumerate(self._places):
            if place >= 0:
                out[:, place] = own[:, column]
        # In labeled patches, count the model's classes that the label set lacks as absent: no label of the set can be
        # such a class.
        labeled = (own != IGNORED).any(1)
        unnamed = [place for place in range(out.shape[1]) if place not in self._places]
        out[:, unnamed] = torch.where(labeled, 0, IGNORED)[:, None]
        self._targets.append(out)

    def targets(self) -> Tensor:
        """Return the labels of all n patches that were added, as whole numbers, with `IGNORED` for unknown labels.

        If a patch has one class, they are indexes among the model's classes, [n, 1]. If it may have several, they are 1
        for a present and 0 for an absent class, [n, classes].
        """
        return torch.cat(self._targets)

    def column(self) -> pyarrow.Array:
        """Return the labels of all patches that were added as a column of a table: null for unknown labels.

        For each patch, it has a class name; if a patch may have several classes, a list of class names.
        """
        targets: Ints = self.targets().numpy()
        names = self._space.classes
        if self._space.multilabel:
            lists = [
                [names[place] for place in np.flatnonzero(row == 1)] if (row != IGNORED).any() else None
                for row in targets
            ]
            return pyarrow.array(lists, pyarrow.list_(pyarrow.string()))
        return pyarrow.array([names[int(row[0])] if row[0] >= 0 else None for row in targets], pyarrow.string())
