"""Average the class probabilities that one or several students predict for windows of a scene."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stssl.mapping.layers import Layer
from stssl.students.student import Student


class Ensemble(nn.Module):
    """Compute class probabilities of windows (parts of a scene): the mean of several students' probabilities."""

    def __init__(self, students: Sequence[Student], layers: Sequence[Layer]) -> None:
        """Store the students, and find the bands that each student needs in the layers of a scene.

        Args:
            students: Students with equal classes.
            layers: Layers of the scene, each with the bands of one pixel size. Together they have all bands.
        """
        super().__init__()
        self.students = nn.ModuleList(students)
        places = {
            band: (number, place) for number, layer in enumerate(layers) for place, band in enumerate(layer.bands)
        }
        self.plans = [_BandPlan([places[band] for band in student.bands]) for student in students]
        self.eval()

    def forward(self, windows: Mapping[int, Tensor]) -> Tensor:
        """Return the students' mean probabilities [n, C] of C classes for n windows.

        Args:
            windows: Pixel values [n, bands, height, width] of the windows in each layer, by the layer's number.
        """
        found = [self._probabilities(number, windows) for number in range(len(self.plans))]
        return torch.stack(found).mean(0) if len(found) > 1 else found[0]

    def broken(self, windows: Mapping[int, Tensor]) -> tuple[int, int] | None:
        """Find a student that gives probabilities that are not finite, so that an error message can name it.

        Args:
            windows: Pixel values [n, bands, height, width] of the windows in each layer, by the layer's number.

        Returns:
            Number of the student and of its first such window, both from 0; None if all probabilities are finite.
        """
        for number in range(len(self.plans)):
            bad = (~self._probabilities(number, windows).isfinite()).any(1)
            if bool(bad.any()):
                return number, int(bad.nonzero()[0])
        return None

    def _probabilities(self, number: int, windows: Mapping[int, Tensor]) -> Tensor:
        """Return the probabilities [n, C] of C classes that one student predicts for n windows.

        Args:
            number: Position of the student, from 0.
            windows: Pixel values [n, bands, height, width] of the windows in each layer, by the layer's number.
        """
        student = self.students[number]
        assert isinstance(student, Student)
        images = self.plans[number].images(windows, student.description.image.side)
        return student.probabilities(images).float()


class _BandPlan:
    """Say where a scene has the bands of one student: the layer of each band, and the band's position in that layer."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self.chosen: dict[int, list[int]] = {}
        for layer, place in places:
            self.chosen.setdefault(layer, []).append(place)
        sorted_places = [(layer, place) for layer, own in self.chosen.items() for place in own]
        self.order = [sorted_places.index(place) for place in places]

    def images(self, windows: Mapping[int, Tensor], side: int) -> Tensor:
        """Collect the bands that a student needs of n windows, and return them as images [n, bands, side, side].

        Args:
            windows: Pixel values [n, bands, height, width] of the windows in each layer, by the layer's number.
            side: Width and height to which the bands are resampled.
        """
        parts = []
        for layer, own in self.chosen.items():
            values = windows[layer]
            parts.append(on_side(values if own == list(range(values.shape[1])) else values[:, own], side))
        joined = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return joined if self.order == sorted(self.order) else joined[:, self.order]


def on_side(images: Tensor, side: int) -> Tensor:
    """Resample images [n, bands, H, W] to [n, bands, side, side]. Images that have this size are returned unchanged."""
    if images.shape[-1] == side and images.shape[-2] == side:
        return images
    shrinks = max(images.shape[-2:]) > side
    return functional.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)
