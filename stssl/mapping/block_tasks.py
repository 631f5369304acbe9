"""Predict blocks of a scene: in this process, or as Ray tasks on one machine or a cluster."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from stssl.base.errors import DataError, RunError
from stssl.base.ray_session import connected_ray
from stssl.data.loader import prefetch
from stssl.mapping.blocks import BlockPredictor
from stssl.mapping.layers import LayerReader

RETRIES = 5
"""How often Ray runs a block again after its worker or node died."""


def run_here(predictor: BlockPredictor, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Predict blocks in this process. While the students predict a block, a thread reads the next one.

    Args:
        predictor: Scene and students.
        numbers: Numbers of the blocks.

    Yields:
        Number and bytes (`BlockResult.packed`) of each finished block.

    Raises:
        DataError: A file cannot be read.
    """
    reader = LayerReader()
    try:
        # Close the thread before its files.
        with contextlib.closing(prefetch((partial(predictor.read, reader, number) for number in numbers), 1)) as inputs:
            for given in inputs:
                yield given.block.number, predictor.predict(given).packed()
    finally:
        reader.close()


def run_on_ray(
    predictor: BlockPredictor, numbers: Sequence[int], *, workers: int | None, address: str | None, gpus: float
) -> Iterator[tuple[int, bytes]]:
    """Predict blocks as Ray tasks, each on one CPU and a share of a GPU. Blocks finish in any sequence.

    Args:
        predictor: Scene and students.
        numbers: Numbers of the blocks.
        workers: Largest number of tasks at the same time; None takes all CPUs. Without an address, Ray starts on this
            machine with this number of CPUs.
        address: Address of a cluster; None starts Ray on this machine.
        gpus: GPUs of a task, such as 0.25.

    Yields:
        Number and bytes (`BlockResult.packed`) of each finished block.

    Raises:
        DataError: A file cannot be read, or a node does not see it.
        RunError: Ray cannot be reached, has too few GPUs, or its workers die again and again.
    """
    import ray

    with connected_ray(address, cpus=workers):
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray has no types here
        if gpus > found.get("GPU", 0):
            raise RunError(f"a task needs {gpus:g} GPUs, and Ray has {found.get('GPU', 0):g}. Give a smaller --gpus.")
        most = min(workers or 1 << 30, max(1, int(found.get("CPU", 1))))
        shared = [ray.put(predictor)]
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_task)
        waiting = list(reversed(numbers))
        flying: list[ray.ObjectRef[tuple[int, bytes]]] = []
        try:
            while waiting or flying:
                while waiting and len(flying) < most:
                    flying.append(task.remote(shared, waiting.pop(), gpus > 0))
                ready, flying = ray.wait(flying, num_returns=1)
                yield from ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            # Ray's error includes the worker's traceback, but the message of a user's mistake should be one line.
            raise (DataError(str(error.cause)) if isinstance(error.cause, DataError) else error) from None
        except ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[:300]
            raise RunError(
                f"workers died again and again ({words}). Finished blocks are kept: run the same command again, with "
                "fewer --workers if memory ran out."
            ) from None
        finally:
            for one in flying:
                ray.cancel(one, force=True)


_kept: dict[object, tuple[BlockPredictor, LayerReader]] = {}


def _task(shared: list[Any], number: int, gpu: bool) -> tuple[int, bytes]:
    """Predict one block in a Ray worker. The worker keeps the students and open files for its next blocks."""
    import ray

    torch.set_num_threads(1)
    if shared[0] not in _kept:
        # Delete the old scene: its students take memory, and a worker serves one prediction at a time.
        for _, old in _kept.values():
            old.close()
        _kept.clear()
        predictor: BlockPredictor = ray.get(shared[0])
        for path in predictor.scene.files:
            if not path.exists():
                raise DataError(
                    f"{path} is not there on {socket.gethostname()}. The scene must lie where every node of the "
                    "cluster sees it; run the same command again then."
                )
        _kept[shared[0]] = (predictor.to(torch.device("cuda" if gpu else "cpu")), LayerReader())
    predictor, reader = _kept[shared[0]]
    return number, predictor.predict(predictor.read(reader, number)).packed()
