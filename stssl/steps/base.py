"""Define the interface between the training loop and a training step, which computes the loss of a batch."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """Hold the loss of one training step, and the values to log.

    Attributes:
        loss: Scalar to differentiate.
        logs: Scalars by name, without gradients. Their mean over ranks is the value of the global batch.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class TrainingStep(nn.Module):
    """Define what the training loop needs from a step: the networks to train, and `forward`, which computes the loss.

    Attributes:
        networks: Modules that get gradients, by name. The loop logs and bounds each module's gradient norm separately.
    """

    networks: nn.ModuleDict

    def backbones(self) -> list[nn.Module]:
        """Return the backbones of the networks, which do most of the arithmetic. The training loop may compile them."""
        found = [getattr(network, "backbone", None) for network in self.networks.values()]
        return [backbone for backbone in found if isinstance(backbone, nn.Module)]

    def after_optimizer(self, bad: Tensor) -> None:
        """Update state that depends on the networks, such as averaged weights.

        The training loop calls this after each step of the optimizer.

        Args:
            bad: Scalar tensor: true if the loop skipped the optimizer's step because the gradients were not finite.
        """
