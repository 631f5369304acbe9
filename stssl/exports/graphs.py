"""Write a student as one graph file (pt2 or ONNX) that also scales its input, and compare file and student.

If the student corrects its logits (CDMAD), the graph does so too.
"""

import importlib.util
import io
import re
import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stssl.base.errors import ConfigError, RunError, first_line
from stssl.data.resizing import Resize, resize_images
from stssl.students.image_model import as_tensor
from stssl.students.samples import Samples
from stssl.students.student import Student

TOLERANCE = 1e-4
"""Largest allowed difference between the logits of a written file and those of the student."""
INPUTS, OUTPUT = ("images", "metadata"), "logits"
"""Names of the inputs and of the output in the files. Only students that see place and date have the second input."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
GraphFormat = Literal["pt2", "onnx"]


class ImageGraph(nn.Module):
    """Compute a student's logits [n, C] of stored values [n, bands, side, side] by operators of pt2 and ONNX."""

    def __init__(self, student: Student, side: int) -> None:
        """Store the student, and compute the matrix that resizes images of a fixed size for it.

        Args:
            student: Student with its weights.
            side: Width and height of the images in pixels.
        """
        super().__init__()
        image = student.description.image
        self.student, self.size, self.resize = student, image.pixels, image.resize
        self.matrix: Tensor | None
        self.register_buffer("matrix", resize_matrix(side, image.pixels, image.resize))

    def forward(self, images: Tensor) -> Tensor:
        """Return the student's logits [n, C] of stored values [n, bands, side, side]."""
        return self.predicted(images, None)

    def predicted(self, images: Tensor, metadata: Tensor | None) -> Tensor:
        """Return the student's logits [n, C] of stored values [n, bands, side, side] and metadata [n, 4] or None."""
        values = self.student.rescaled(images) if self.resize == "corners" else images
        values = self._resized(values)
        values = values if self.resize == "corners" else self.student.rescaled(values)
        return self.student.corrected(self.student.network(values, metadata).logits)

    def _resized(self, images: Tensor) -> Tensor:
        if self.matrix is None:
            return resize_images(images, self.size, self.resize)
        # Resize by matrices, because ONNX has no interpolation with an antialiasing filter.
        return self.matrix @ images @ self.matrix.T


class MetadataGraph(ImageGraph):
    """Compute the logits of a student that sees place and date, from stored values and metadata [n, 4]."""

    def forward(self, images: Tensor, metadata: Tensor) -> Tensor:  # type: ignore[override]  # another signature
        """Return the student's logits [n, C] of stored values [n, bands, side, side] and metadata [n, 4]."""
        return self.predicted(images, metadata)


def resize_matrix(side: int, size: int, how: Resize) -> Tensor | None:
    """Return the matrix [size, side] that resamples a row of pixels to another number of pixels.

    Return None if the numbers are equal, or if no matrix can resample in this way.

    Args:
        side: Number of pixels of a row.
        size: Number of pixels of the resampled row.
        how: How the student resizes. `pillow` also rounds, which no matrix does.
    """
    if side == size or how == "pillow":
        return None
    options = {"align_corners": True} if how == "corners" else {"align_corners": False, "antialias": side > size}
    return functional.interpolate(torch.eye(side)[None, None], (size, side), mode="bilinear", **options)[0, 0]


def graph_of(student: Student) -> ImageGraph:
    """Return a module that computes a student's logits and can be exported, for images of the stored patches' size."""
    side = student.description.image.side
    return (MetadataGraph if student.needs_metadata else ImageGraph)(student, side).eval()


def graph_file(student: Student, kind: GraphFormat, samples: Samples) -> tuple[bytes, float]:
    """Return the contents of a file with a student as one graph, after a comparison with the student.

    For the comparison, load the contents again and compute logits of sample patches with them.

    Args:
        student: Student, on the CPU.
        kind: Format of the file.
        samples: Patches for the comparison.

    Returns:
        The bytes of the file, and the largest difference between the logits of the file and of the student.

    Raises:
        ConfigError: A package for ONNX is missing.
        RunError: The format lacks an operator of the network, or the file gives other logits than the student.
    """
    if kind == "onnx":
        require_onnx()
    images = as_tensor(samples.images).float()
    inputs = (images, torch.from_numpy(samples.metadata)) if student.needs_metadata else (images,)
    program = _traced(student, inputs)
    # Write into memory: torch's writer of files ends the process if the disk is full.
    content = _pt2(program) if kind == "pt2" else _onnx(program, student.description.network.backbone)
    with torch.no_grad():
        expected = student(as_tensor(samples.images), *inputs[1:]).numpy()
    worst = 0.0
    for count in (len(images), 1):  # also try a batch of one: a file with a fixed number of images fails for it
        found = logits_of(kind, content, tuple(value[:count] for value in inputs))
        worst = max(worst, float(np.abs(found - expected[:count]).max(initial=0)))
    if not worst <= TOLERANCE:
        raise RunError(
            f"the {kind} file gives other logits than the student: they differ by {worst:.2g} on stored patches, and "
            f"{TOLERANCE:g} is allowed. Nothing was written. Try the other format (pt2 or onnx)."
        )
    return content, worst


def _traced(student: Student, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    graph = graph_of(student)
    # Export with two images: torch.export would take a batch of one as a fixed size. Use zeros in place of patches: the
    # file stores these images, and it may be published.
    examples = tuple(torch.zeros(2, *value.shape[1:]) for value in inputs)
    batch = torch.export.Dim("n", min=1)
    shapes = {name: {0: batch} for name, _ in zip(INPUTS, inputs, strict=False)}
    try:
        with torch.no_grad():
            program = torch.export.export(graph, examples, dynamic_shapes=shapes)
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise RunError(
            f"torch.export cannot write {student.description.network.backbone} as a graph: {first_line(error)} "
            "Nothing was written."
        ) from None
    for node in program.graph.nodes:
        # Remove the stack trace: it names folders of this machine, and the file may be published.
        node.meta.pop("stack_trace", None)
    return program


def require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        ConfigError: A package is missing. The message says how to install it.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install 'stssl[onnx]'")


def _pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, backbone: str) -> bytes:
    from torch.onnx.errors import OnnxExporterError

    names = list(INPUTS[: len(program.graph_signature.user_inputs)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(program, input_names=names, output_names=[OUTPUT], dynamo=True, verbose=False)
    except OnnxExporterError as error:
        found = re.search(r"op='([\w.]+)'", f"{error} {error.__cause__} {getattr(error.__cause__, '__cause__', '')}")
        operator = f"the operator {found[1]}" if found else "an operator"
        raise RunError(
            f"ONNX lacks {operator} of {backbone}, so that it cannot be written as ONNX. Nothing was written. Use "
            "--format pt2."
        ) from None
    if made is None:
        raise RunError(f"torch.onnx gave no model of {backbone}. Nothing was written. Use --format pt2.")
    content: bytes = made.model_proto.SerializeToString()
    return content


def logits_of(kind: GraphFormat, content: bytes, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    """Load a model file from its bytes, and return the logits [n, C] that it computes.

    Args:
        kind: Format of the file.
        content: Bytes of the file.
        inputs: Images [n, bands, side, side] of stored values, and metadata [n, 4] if the file takes it.

    Raises:
        RunError: ONNX Runtime cannot run the network.
    """
    if kind == "pt2":
        module = torch.export.load(io.BytesIO(content)).module()
        with torch.no_grad():
            logits: NDArray[np.float32] = module(*inputs).numpy()
        return logits
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    feeds = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        result: NDArray[np.float32] = session.run([OUTPUT], feeds)[0]
    except (states.Fail, states.InvalidGraph, states.NotImplemented, states.RuntimeException) as error:
        raise RunError(
            f"onnxruntime cannot run the network: {first_line(error)} Nothing was written. Use --format pt2."
        ) from None
    return result
