"""What a recipe will cost: `stssl plan` takes a few real steps on this machine and says what follows from them.

One process takes the steps of one worker, on as many rows as that worker would have. Gradients are not exchanged: what
that takes is computed from their bytes.
"""

import math
import resource
import statistics
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stssl.config import load_tree
from stssl.data.remote import is_remote
from stssl.errors import ConfigError, RunError
from stssl.pretraining import kind_of
from stssl.recipe import RunRecipe, load_as
from stssl.rundata import PixelData
from stssl.train.loop import update
from stssl.train.session import Session, open_session

WARM_UP = 2
MORE = 5
"""Batches of the longer ones of two validations that are timed."""
COPIES = 4
"""Files of the whole state while one is written: last, previous, best, and the new one."""
NODE_BYTES_PER_S = 10e9
"""What is assumed to pass between the GPUs of one node; NVLink is faster."""


@dataclass(frozen=True)
class Machines:
    """What a run is planned for.

    Attributes:
        nodes: Number of machines.
        per_node: Workers on each.
        link: Network between nodes, and to the store, in Gbit/s.
    """

    nodes: int
    per_node: int
    link: float

    @property
    def workers(self) -> int:
        """All workers."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Measured:
    """Medians over the steps of one worker of `workers`, in this process.

    Attributes:
        step: Seconds a step, without reading.
        load: Seconds to read and draw one worker's rows of a step, with one thread.
        rows: Patches of that step.
        memory: Bytes at the peak: of the GPU where there is one, else of the process.
    """

    step: float
    load: float
    rows: int
    memory: int


@dataclass(frozen=True)
class Plan:
    """Predictions for a run.

    Attributes:
        machines: What it is planned for.
        one: Measured with the whole global batch; None where that does not fit.
        share: Measured with one worker's share.
        exchange: Seconds to sum gradients over workers.
        link: Seconds to bring a node's patches over the network, were the store behind it.
        validation: Seconds of one validation.
        steps: Of the recipe.
        validations: Of the recipe.
        gradients: Bytes.
        checkpoint: Bytes of one.
        stored: Bytes of a patch as it is stored.
        rows: Patches of a global step.
        device: Where it was measured.
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

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of what goes on at the same time; the longest limits the step."""
        return {
            "computing and exchanging gradients": self.share.step + self.exchange,
            "reading and drawing patches on the CPU": self.share.load,
            "the network to the store": self.link,
        }

    @property
    def step(self) -> float:
        """Seconds a step, if the exchange of gradients hides behind nothing."""
        return max(self.parts.values())

    @property
    def hours(self) -> float:
        """The whole run, validations included."""
        return (self.steps * self.step + self.validations * self.validation) / 3600

    @property
    def efficiency(self) -> float | None:
        """Speed against one worker with the whole batch, over the number of workers."""
        if self.one is None:
            return None
        return max(self.one.step, self.one.load) / (self.step * self.machines.workers)


def plan(recipe: RunRecipe, machines: Machines, steps: int = 5) -> Plan:
    """Take steps of a recipe here, and predict the run.

    Args:
        recipe: What to train; nothing of it is written.
        machines: Where it is to run.
        steps: How many steps are timed, after two to warm up.

    Raises:
        ConfigError: More workers than rows.
        RunError: A worker's share of a batch does not fit into this machine's memory.
    """
    key, least = recipe.least_rows
    if least < machines.workers:
        raise ConfigError(f"{key} {least} is smaller than {machines.workers} workers: no row for each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    session = open_session(recipe, device)
    session.position.step = min(recipe.schedule.supervised_start, recipe.schedule.steps - 1)
    share = _measure(session, machines.workers, steps)
    if share is None:
        raise RunError(
            f"one worker's rows of a step do not fit into this machine's memory ({machines.workers} workers). "
            "Plan for more workers, or set batch.micro."
        )
    checkpoint = sum(tensor.nbytes for tensor in _tensors(session.state()))
    gradients = sum(part.nbytes for part in session.stage.step.networks.parameters() if part.requires_grad)
    validation = _validation(session, recipe, machines.workers)
    one = share if machines.workers == 1 else _measure(session, 1, steps)
    stored, rows = _stored_bytes(session), session.stage.rows
    return Plan(
        machines=machines,
        one=one,
        share=share,
        exchange=exchange_seconds(gradients, machines),
        link=rows / machines.nodes * stored * 8 / (machines.link * 1e9),
        validation=validation,
        steps=recipe.schedule.steps,
        validations=math.ceil(recipe.schedule.steps / recipe.schedule.evaluate_every),
        gradients=gradients,
        checkpoint=checkpoint,
        stored=stored,
        rows=rows,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    )


def exchange_seconds(gradients: int, machines: Machines) -> float:
    """Time of a ring all-reduce: inside each node, then between nodes, each sending 2 (n - 1) / n of the bytes."""
    inside = 2 * (machines.per_node - 1) / machines.per_node * gradients / NODE_BYTES_PER_S
    between = 2 * (machines.nodes - 1) / machines.nodes * gradients * 8 / (machines.link * 1e9)
    return inside + between


def _measure(session: Session, workers: int, steps: int) -> Measured | None:
    """Steps of one worker's rows; None where they do not fit into memory."""
    loader, device, start = session.stage.loader, session.stage.device, session.position.step
    loader.block = (0, workers)
    loading, taken = [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        for number in range(start, start + WARM_UP + steps):
            before = time.perf_counter()
            raw = next(loader.batches(number, number + 1))
            loaded = time.perf_counter()
            update(session, raw)
            if device.type == "cuda":
                torch.cuda.synchronize()
            loading.append(loaded - before)
            taken.append(time.perf_counter() - loaded)
    except torch.OutOfMemoryError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = int(torch.cuda.max_memory_allocated()) if device.type == "cuda" else peak
    rows = session.stage.rows // workers
    return Measured(statistics.median(taken[WARM_UP:]), statistics.median(loading[WARM_UP:]), rows, memory)


def _validation(session: Session, recipe: RunRecipe, workers: int) -> float:
    """Seconds of a validation on all workers: a fixed part, and one that grows with patches.

    What grows is found without the batches for BatchNorm, whose time would drown it; the first validation is not
    counted, since it brings things into memory.
    """
    options = recipe.evaluation
    data: PixelData = session.stage.data
    total = len(data.split.validation)
    total = total if options.limit is None else min(total, options.limit)

    def taken(batches: int, **changes: int) -> float:
        limited = options.model_copy(update={"limit": batches * options.batch, **changes})
        session.stage.recipe = recipe.model_copy(update={"evaluation": limited})
        before = time.perf_counter()
        with session.autocast():
            session.stage.validate()
        return time.perf_counter() - before

    taken(1)
    whole = taken(1)
    little, much = (min(taken(batches, batchnorm_batches=0) for _ in range(2)) for batches in (1, MORE))
    session.stage.recipe = recipe
    first, last = (min(total, batches * options.batch) for batches in (1, MORE))
    growing = max(0.0, much - little) / (last - first) if last > first else 0.0
    return max(0.0, whole - growing * first) + growing * total / workers


def _stored_bytes(session: Session) -> float:
    """Bytes that reading one patch moves, as stored: all bands of each array that has a wanted one."""
    data: PixelData = session.stage.data
    store, names = data.store, data.reader.layout
    if is_remote(store.path):
        reader = store.reader(session.recipe.data.bands)
        return sum(math.prod(shape[1:]) * dtype.itemsize for shape, dtype in reader.shapes(1).values())
    sizes = [path.stat().st_size for name in names for path in Path(store.path, name, "c").rglob("*") if path.is_file()]
    return sum(sizes) / store.size


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)


def describe(found: Plan) -> str:
    """The plan in words, with what it rests on."""
    machines, share = found.machines, found.share
    limit = max(found.parts, key=lambda name: found.parts[name])
    shown = "unknown (the whole batch does not fit one device here)"
    efficiency = shown if found.efficiency is None else f"{found.efficiency:.0%} of {machines.workers} x one worker"
    lines = {
        "planned for": f"{machines.workers} workers ({machines.nodes} x {machines.per_node}), {machines.link:g} Gbit/s",
        "a step": f"{found.step:.3f} s, limited by {limit}",
        **{f"  {name}": f"{seconds:.3f} s" for name, seconds in found.parts.items()},
        "  exchanging gradients": f"{found.exchange:.3f} s of it ({found.gradients / 1e6:.1f} MB each step)",
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
        "other machines differ. Assumed: gradients hide behind nothing (DDP hides some), a ring all-reduce at the "
        f"link's full speed and {NODE_BYTES_PER_S / 1e9:g} GB/s inside a node, and the store behind the same link. "
        "Not counted: starting Ray and its workers, slow nodes, a busy network."
    )
    words = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*words, "", *textwrap.wrap(rests, 100)])


def load(path: Path, overrides: Iterable[str]) -> RunRecipe:
    """Read a recipe file of any kind."""
    return load_as(kind_of(load_tree(path)), path, overrides)


def machines_for(recipe: RunRecipe, nodes: int, per_node: int | None, link: float) -> Machines:
    """`nodes` machines, by default with as many workers together as `launch.workers` says."""
    asked = recipe.launch.workers
    most = max(1, asked[1] if isinstance(asked, tuple) else asked)
    return Machines(nodes, per_node or math.ceil(most / nodes), link)
