"""Estimate a run's cost from the measured time of its steps and the sizes of its gradients and patches."""

import textwrap
from dataclasses import dataclass

COPIES = 4
"""Largest number of checkpoints on disk at one time: last, previous, best, and the one being written."""
NODE_BYTES_PER_S = 10e9
"""Assumed speed of transfers between the GPUs of one machine, in bytes per second. NVLink is faster."""


@dataclass(frozen=True)
class Machines:
    """Describe the machines on which a planned run will train.

    Attributes:
        nodes: Number of machines.
        per_node: Number of workers (training processes) on each machine.
        link: Speed of the network between machines, and to the store, in Gbit/s.
    """

    nodes: int
    per_node: int
    link: float

    @property
    def workers(self) -> int:
        """Return the number of workers (training processes) on all machines together."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Measured:
    """Hold the median times of a worker's training step, and the worker's peak memory, measured in this process.

    Attributes:
        step: Seconds of a step, without reading patches.
        load: Seconds to read the worker's patches of a step, and to draw the random choices for their augmentation.
        rows: Number of patches that the worker reads in a step.
        memory: Peak memory in bytes: GPU memory if the device is a GPU, else memory of the process.
    """

    step: float
    load: float
    rows: int
    memory: int


@dataclass(frozen=True)
class CostEstimate:
    """Hold what was measured and computed for a planned run, and predict its time from it.

    Attributes:
        machines: Machines of the planned run.
        one: Measured step with the whole global batch in one process; None if the batch does not fit into memory.
        share: Measured step with one worker's share of the global batch.
        exchange: Seconds per step to sum gradients over workers.
        link: Seconds per step to send one machine's patches over the network from the store.
        validation: Seconds of one validation.
        steps: Number of steps of the run.
        validations: Number of validations of the run.
        gradients: Size of all gradients in bytes.
        checkpoint: Size of one checkpoint in bytes.
        stored: Size of a patch in the store in bytes.
        rows: Number of patches in a global batch.
        device: Device that took the measured steps.
        start: Number of first steps that use fewer augmented views than later steps, such as those of a supervised
            start.
        early: Measured first step with one worker's share of the batch; None if no such steps were measured.
        batchnorm: Seconds of each validation that go into new BatchNorm statistics for the averaged weights.
    """

    machines: Machines
    one: Measured | None
    share: Measured
    exchange: float
    link: float
    validation: float
    steps: int
    validations: int
    gradients: int
    checkpoint: int
    stored: float
    rows: int
    device: str
    start: int = 0
    early: Measured | None = None
    batchnorm: float = 0.0

    def parts_of(self, share: Measured) -> dict[str, float]:
        """Return the predicted seconds of each part of a step (computing, reading, network), by the part's name.

        Args:
            share: Measured step of one worker.
        """
        return {
            "computing and exchanging gradients": share.step + self.exchange,
            "reading and drawing patches on the CPU": share.load,
            "the network to the store": self.link * share.rows / self.share.rows,
        }

    @property
    def parts(self) -> dict[str, float]:
        """Return the seconds of each part (computing, reading, network) of a step that uses all views, by name."""
        return self.parts_of(self.share)

    @property
    def step(self) -> float:
        """Return the predicted seconds of a training step: those of its slowest part, as its parts run together.

        The estimate assumes that gradients are exchanged after the backward pass, not during it.
        """
        return max(self.parts.values())

    @property
    def early_step(self) -> float:
        """Return the predicted seconds of a step at the start of the run, where steps use fewer views than later.

        If no such step was measured, return the seconds of a later step.
        """
        return max(self.parts_of(self.early or self.share).values())

    @property
    def hours(self) -> float:
        """Return the predicted hours of the whole run, including validations."""
        taken = self.start * self.early_step + (self.steps - self.start) * self.step
        return (taken + self.validations * self.validation) / 3600

    @property
    def efficiency(self) -> float | None:
        """Return the share of the ideal speed-up that the workers reach together; 1 is ideal.

        It is the speed-up over one worker that trains with the whole batch, divided by the number of workers. Return
        None if the whole batch does not fit into one worker's memory.
        """
        if self.one is None:
            return None
        return max(self.one.step, self.one.load) / (self.step * self.machines.workers)


def exchange_seconds(gradients: int, machines: Machines) -> float:
    """Return the seconds in which workers sum their gradients at a training step, inside and between machines.

    In a ring all-reduce of n members, each member sends 2 (n - 1) / n times the bytes of the gradients.

    Args:
        gradients: Size of all gradients in bytes.
        machines: Machines of the planned run.
    """
    inside = 2 * (machines.per_node - 1) / machines.per_node * gradients / NODE_BYTES_PER_S
    between = 2 * (machines.nodes - 1) / machines.nodes * gradients * 8 / (machines.link * 1e9)
    return inside + between


def describe_costs(found: CostEstimate) -> str:
    """Return text of several lines that shows a user the predicted cost `found`, and what the prediction assumes."""
    machines, share = found.machines, found.share
    limit = max(found.parts, key=lambda name: found.parts[name])
    shown = "unknown (the whole batch does not fit one device here)"
    efficiency = shown if found.efficiency is None else f"{found.efficiency:.0%} of {machines.workers} x one worker"
    lines = {
        "planned for": f"{machines.workers} workers ({machines.nodes} x {machines.per_node}), {machines.link:g} Gbit/s",
        "a step": f"{found.step:.3f} s, limited by {limit}",
        **{f"  {name}": f"{seconds:.3f} s" for name, seconds in found.parts.items()},
        "  exchanging gradients": f"{found.exchange:.3f} s of it ({found.gradients / 1e6:.1f} MB each step)",
        **({f"  of the first {found.start:,}": f"{found.early_step:.3f} s, at fewer views"} if found.start else {}),
        **({"scaling": efficiency} if machines.workers > 1 else {}),
        "a validation": f"{found.validation:.1f} s, {found.validations} of them",
        **({"  new BatchNorm statistics": f"{found.batchnorm:.1f} s of it"} if found.batchnorm >= 0.05 else {}),
        "the run": f"{found.hours:.2f} hours for {found.steps:,} steps",
        "memory": f"{share.memory / 1e9:.2f} GB a worker at the peak",
        "store": f"{found.rows / found.step:,.0f} patches/s, {found.rows * found.stored / found.step / 1e6:,.1f} MB/s",
        "checkpoints": f"{COPIES * found.checkpoint / 1e6:,.0f} MB on disk ({COPIES} times the whole state)",
    }
    width = max(map(len, lines))
    rests = (
        f"Measured here ({found.device}) in one process, with the {share.rows} patches of a step that one worker has: "
        "other machines differ. Assumed: gradients are exchanged after the backward pass (DDP overlaps some), by a "
        f"ring all-reduce at the link's full speed and {NODE_BYTES_PER_S / 1e9:g} GB/s inside a node, and the store "
        "behind the same link. Not counted: starting Ray and its workers, slow nodes, a busy network."
    )
    words = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*words, "", *textwrap.wrap(rests, 100)])
