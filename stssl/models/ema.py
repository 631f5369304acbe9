"""Exponential moving average of weights, and the BatchNorm statistics that go with averaged weights."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stssl.base.distributed import world_size


class Ema(nn.Module):
    """An averaged copy of a network: parameters by foreach operations, without copying a state dict."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start as a copy of `network`; `decay` is the share of the old average that a step keeps."""
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Ema":
        """The average is never in training mode by itself."""
        return super().train(False)

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Move toward the network's present parameters."""
        own: list[Tensor] = list(self.network.parameters())
        live: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(own, live, 1 - self.decay)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move toward the network's present parameters; BatchNorm statistics are running means already: copied."""
        self.update_parameters(network)
        if statistics := running_statistics(network):
            torch._foreach_copy_(running_statistics(self.network), statistics)


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """All BatchNorm layers that keep running statistics."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Means and variances of all BatchNorm layers."""
    return [s for layer in batchnorms(module) for s in (layer.running_mean, layer.running_var) if s is not None]


class KeptStatistics:
    """Running statistics of BatchNorm layers, saved before a step, and put back where the step went wrong."""

    def __init__(self, module: nn.Module) -> None:
        """Keep those of all layers of `module` that are in training mode."""
        self.live = [
            value
            for layer in batchnorms(module)
            if layer.training
            for value in (layer.running_mean, layer.running_var)
            if value is not None
        ]
        self.saved: Tensor | None = None

    def save(self) -> None:
        """Remember them as they are."""
        if self.live:
            self.saved = torch.cat([value.flatten() for value in self.live])

    @torch.no_grad()
    def restore(self, bad: Tensor) -> None:
        """Restore the saved statistics where `bad` (a scalar) is true, without waiting for the device."""
        if self.saved is None:
            return
        flat = torch.where(bad, self.saved, torch.cat([value.flatten() for value in self.live]))
        parts = torch.split(flat, [value.numel() for value in self.live])
        torch._foreach_copy_(self.live, [part.view_as(value) for part, value in zip(parts, self.live, strict=True)])


@torch.no_grad()
def average_batchnorm(module: nn.Module) -> None:
    """Replace running statistics by their mean over ranks; call on all ranks before evaluation and checkpoint."""
    statistics = running_statistics(module)
    if world_size() == 1 or not statistics:
        return
    flat = torch.cat([value.flatten() for value in statistics])
    dist.all_reduce(flat)
    means = torch.split(flat / world_size(), [value.numel() for value in statistics])
    for value, mean in zip(statistics, means, strict=True):
        value.copy_(mean.view_as(value))


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, run: Callable[[], Iterable[object]]) -> None:
    """Estimate running statistics anew, as the plain mean over the batches that `run` puts through the network.

    Args:
        network: Whose layers are estimated; left in evaluation mode.
        run: Passes batches through the network, yielding after each.
    """
    layers = batchnorms(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    for _ in run():
        pass
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context in which a network is in evaluation mode."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def frozen_statistics(module: nn.Module) -> "_Frozen":
    """Context in which BatchNorm normalizes by the batch as in training, but leaves its running statistics alone."""
    return _Frozen(batchnorms(module))


class _Frozen:
    def __init__(self, layers: list[_BatchNorm]) -> None:
        self.layers = layers

    def __enter__(self) -> None:
        self.saved: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
        for layer in self.layers:
            self.saved.append((layer.running_mean, layer.running_var, layer.num_batches_tracked))
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                layer._buffers[name] = None

    def __exit__(self, *error: object) -> None:
        for layer, saved in zip(self.layers, self.saved, strict=True):
            for name, value in zip(("running_mean", "running_var", "num_batches_tracked"), saved, strict=True):
                layer._buffers[name] = value
