"""Predict blocks of a scene (groups of windows): in this process, or as Ray tasks on one machine or a cluster."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from stssl.base.errors import DataError, RunError
from stssl.base.ray_session import connected_ray, finished_tasks
from stssl.data.loader import prefetch
from stssl.mapping.blocks import BlockInput, BlockPredictor, OnWindows
from stssl.mapping.layers import LayerReader

RETRIES = 5
"""How often Ray runs a block again after its worker or node died."""


def run_here(
    predictor: BlockPredictor, numbers: Sequence[int], progress: OnWindows | None = None
) -> Iterator[tuple[int, bytes]]:
    """Predict blocks in this process. While the students predict a block, a thread reads the next one.

    Args:
        predictor: Predictor with the scene and the students.
        numbers: Numbers of the blocks to predict.
        progress: Called after each batch of windows, with the number of windows in it.

    Yields:
        Number of each finished block, and its predictions as bytes (made by `BlockResult.packed`).

    Raises:
        DataError: A file cannot be read, or a student gives numbers that are not finite.
    """
    reader = LayerReader()
    try:
        # Stop the reading thread before `reader` closes its files: otherwise it could read from a closed file.
        with contextlib.closing(prefetch((partial(predictor.read, reader, number) for number in numbers), 1)) as inputs:
            for given in inputs:
                yield given.block.number, predictor.predict(given, progress).packed()
    finally:
        reader.close()


def run_on_ray(
    predictor: BlockPredictor, numbers: Sequence[int], *, workers: int | None, address: str | None, gpus: float
) -> Iterator[tuple[int, bytes]]:
    """Predict blocks as Ray tasks, each on one CPU and a share of a GPU. Blocks finish in any sequence.

    Args:
        predictor: Predictor with the scene and the students.
        numbers: Numbers of the blocks to predict.
        workers: Largest number of tasks at the same time; None takes all CPUs. Without an address, Ray starts on this
            machine with this number of CPUs.
        address: Address of a cluster; None starts Ray on this machine.
        gpus: Share of a GPU for each task, such as 0.25; 0 predicts on CPUs.

    Yields:
        Number of each finished block, and its predictions as bytes (made by `BlockResult.packed`).

    Raises:
        DataError: A file cannot be read, a node does not see it, or a student gives numbers that are not finite.
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
        advice = "Finished blocks are kept: run the same command again, with fewer --workers if memory ran out."

        def start(number: int, following: int | None) -> "ray.ObjectRef[tuple[int, bytes]]":
            return task.remote(shared, number, following, gpus > 0)

        yield from finished_tasks(start, numbers, most, advice)


class ReadAhead:
    """Predict blocks (groups of windows) in a Ray worker, while a thread reads the block that probably comes next."""

    def __init__(self, predictor: BlockPredictor) -> None:
        """Store the predictor. Do not read a block yet.

        Args:
            predictor: Predictor with the scene and the students.
        """
        self._predictor, self._reader = predictor, LayerReader()
        self._pool = ThreadPoolExecutor(1, "stssl-reader")
        self._next: tuple[int, Future[BlockInput]] | None = None

    def close(self) -> None:
        """End the thread that reads blocks, and close all files of the scene."""
        self._next = None
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def predict(self, number: int, following: int | None) -> bytes:
        """Predict a block, and start to read the block that probably comes next.

        Args:
            number: Number of the block to predict.
            following: Number of the block that is probably asked for next; None for none.

        Returns:
            Predictions of the block as bytes (made by `BlockResult.packed`).

        Raises:
            DataError: A file cannot be read, or a student gives numbers that are not finite.
        """
        ahead, self._next = self._next, None
        fits = ahead is not None and ahead[0] == number
        given = (ahead[1] if ahead is not None and fits else self._read(number)).result()
        if following is not None:
            self._next = following, self._read(following)
        return self._predictor.predict(given).packed()

    def _read(self, number: int) -> "Future[BlockInput]":
        return self._pool.submit(self._predictor.read, self._reader, number)


_kept: dict[object, ReadAhead] = {}


def _task(shared: list[Any], number: int, following: int | None, gpu: bool) -> tuple[int, bytes]:
    """Predict one block in a Ray worker. Return its number, and its predictions as bytes.

    The worker's process keeps the students and open files, so that it can use them for further blocks.

    Args:
        shared: List with one item: Ray's reference of the predictor.
        number: Number of the block to predict.
        following: Number of the block that this worker will probably get next; None for none.
        gpu: True to predict on a GPU.
    """
    import ray

    torch.set_num_threads(1)
    if shared[0] not in _kept:
        # Delete the scene and students of an earlier prediction, which take memory: a worker serves one at a time.
        for old in _kept.values():
            old.close()
        _kept.clear()
        predictor: BlockPredictor = ray.get(shared[0])
        for path in predictor.scene.files:
            if not path.exists():
                raise DataError(
                    f"{path} is not there on {socket.gethostname()}. The scene must lie where every node of the "
                    "cluster sees it; run the same command again then."
                )
        _kept[shared[0]] = ReadAhead(predictor.to(torch.device("cuda" if gpu else "cpu")))
    return number, _kept[shared[0]].predict(number, following)
