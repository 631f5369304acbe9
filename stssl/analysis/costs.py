"""Estimate a run's cost from the measured time of its steps and the size of its gradients and patches."""

import textwrap
from dataclasses import dataclass

COPIES = 4
"""Checkpoints on disk at most: last, previous, best, and the one being written."""
NODE_BYTES_PER_S = 10e9
"""Bytes a second that are assumed between the GPUs of one node; NVLink is faster."""


@dataclass(frozen=True)
class Machines:
    """Describe the machines that a run is planned for.

    Attributes:
        nodes: Number of machines.
        per_node: Workers on each machine.
        link: Speed of the network between machines, and to the store, in Gbit/s.
    """

    nodes: int
    per_node: int
    link: float

    @property
    def workers(self) -> int:
        """Return the number of all workers."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Measured:
    """Hold medians over the steps that one worker took in this process.

    Attributes:
        step: Seconds of a step, without reading.
        load: Seconds to read and draw the worker's rows of a step, with one thread.
        rows: Patches of the worker in a step.
        memory: Bytes at the peak: of the GPU if there is one, else of the process.
    """

    step: float
    load: float
    rows: int
    memory: int


@dataclass(frozen=True)
class CostEstimate:
    """Predict the time, memory and traffic of a run.

    Attributes:
        machines: Machines that the run is planned for.
        one: Measured with the whole global batch in one process; None if that does not fit.
        share: Measured with one worker's share of the batch.
        exchange: Seconds a step to sum gradients over workers.
        link: Seconds a step to bring a machine's patches over the network, if the store is behind it.
        validation: Seconds of one validation.
        steps: Steps of the run.
        validations: Validations of the run.
        gradients: Bytes of all gradients.
        checkpoint: Bytes of one checkpoint.
        stored: Bytes of a patch in the store.
        rows: Patches of a global batch.
        device: Device that was measured.
        start: Number of first steps that use fewer views, such as those of a supervised start.
        early: Measured with one worker's share of such a step; None if there are none.
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

    def parts_of(self, share: Measured) -> dict[str, float]:
        """Name the parts of a step that run at the same time, with the seconds of each; the longest limits the step."""
        return {
            "computing and exchanging gradients": share.step + self.exchange,
            "reading and drawing patches on the CPU": share.load,
            "the network to the store": self.link * share.rows / self.share.rows,
        }

    @property
    def parts(self) -> dict[str, float]:
        """Return the measured parts of a step that uses all views."""
        return self.parts_of(self.share)

    @property
    def step(self) -> float:
        """Return the seconds of a step, if gradients are exchanged after the backward pass and not during it."""
        return max(self.parts.values())

    @property
    def early_step(self) -> float:
        """Return the seconds of one of the first steps, which use fewer views."""
        return max(self.parts_of(self.early or self.share).values())

    @property
    def hours(self) -> float:
        """Return the hours of the whole run, validations included."""
        taken = self.start * self.early_step + (self.steps - self.start) * self.step
        return (taken + self.validations * self.validation) / 3600

    @property
    def efficiency(self) -> float | None:
        """Return the speed-up over one worker with the whole batch, divided by the number of workers."""
        if self.one is None:
            return None
        return max(self.one.step, self.one.load) / (self.step * self.machines.workers)


def exchange_seconds(gradients: int, machines: Machines) -> float:
    """Compute the seconds of a ring all-reduce inside each node and then between nodes.

    In a ring of n, each member sends 2 (n - 1) / n of the bytes.
    """
    inside = 2 * (machines.per_node - 1) / machines.per_node * gradients / NODE_BYTES_PER_S
    between = 2 * (machines.nodes - 1) / machines.nodes * gradients * 8 / (machines.link * 1e9)
    return inside + between


def describe_costs(found: CostEstimate) -> str:
    """Write an estimate as text, with its assumptions."""
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
