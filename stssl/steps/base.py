"""Define the interface between the loop and a training step."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """The loss to differentiate, and detached scalars whose mean over ranks is the global batch's value."""

    loss: Tensor
    logs: dict[str, Tensor]


class TrainingStep(nn.Module):
    """Owns what is trained and all its state; `forward` of a batch is one step's `StepOutput`.

    Attributes:
        networks: By name, what gets gradients. Each one's gradient norm is logged, and bounded on its own.
    """

    networks: nn.ModuleDict

    def backbones(self) -> list[nn.Module]:
        """List the backbones, which take most of a step's arithmetic."""
        found = [getattr(network, "backbone", None) for network in self.networks.values()]
        return [backbone for backbone in found if isinstance(backbone, nn.Module)]

    def after_optimizer(self, bad: Tensor) -> None:
        """Move what follows the networks; called after each optimizer step.

        Args:
            bad: Scalar: whether the step was left out because its gradients are not finite.
        """
