"""Connect to Ray, run Ray tasks, and compare the resources of Ray with those that workers need."""

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from stssl.base.errors import DataError, RunError

if TYPE_CHECKING:
    from ray import ObjectRef

_Result = TypeVar("_Result")


@contextlib.contextmanager
def connected_ray(address: str | None = None, dashboard: bool = False, cpus: int | None = None) -> Iterator[None]:
    """Return a context in which this process is connected to Ray.

    If this process has a session already, use it and do not close it.

    Args:
        address: Address of a cluster. None takes `RAY_ADDRESS`, or starts a local session if that is not set.
        dashboard: True to give a local session a dashboard. Tune needs it to stop trials early.
        cpus: CPU cores of a local session; None takes all.

    Raises:
        RunError: The cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    ask = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR)
        else:
            # Without "local", Ray would join any cluster that once started on this machine, even one that is gone.
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=dashboard,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"cannot reach Ray at {address or 'this machine'}: {error}") from error
    finally:
        _take_back(signal.SIGTERM, ask)
    try:
        yield
    finally:
        ray.shutdown()


def _take_back(number: signal.Signals, handler: object) -> None:
    """Restore the earlier handler of a signal that Ray replaced: Ray's handler ends the process without a message.

    Args:
        number: The signal.
        handler: The earlier handler. If it is no function, or in another thread than the main one, do nothing.
    """
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def finished_tasks(
    start: "Callable[[int, int | None], ObjectRef[_Result]]", numbers: Sequence[int], most: int, advice: str
) -> Iterator[_Result]:
    """Run Ray tasks, at most `most` at a time, and yield each result when its task ends, in any sequence.

    Each task is also told which task starts when it ends. Often the same worker runs that task next, so the worker can
    prepare for it.

    Args:
        start: Function that starts a task and returns Ray's reference to its result. It gets the task's number, and the
            number of the task that starts when it ends, or None.
        numbers: Numbers of the tasks.
        most: Largest number of tasks at the same time. More tasks would only wait in Ray's queue.
        advice: What to do if workers die again and again, for the error message.

    Yields:
        Result of each task.

    Raises:
        DataError: A task raised it.
        RunError: Workers die again and again.
    """
    import ray

    waiting = deque(numbers)
    first = [waiting.popleft() for _ in range(min(most, len(waiting)))]
    flying: dict[ObjectRef[_Result], int | None] = {}

    def launch(number: int) -> None:
        following = waiting.popleft() if waiting else None
        flying[start(number, following)] = following

    try:
        for number in first:
            launch(number)
        while flying:
            ready, _ = ray.wait(list(flying), num_returns=1)
            following = flying.pop(ready[0])
            if following is not None:
                launch(following)
            yield ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        # Ray's error includes the worker's traceback, but the message of a user's mistake should be one line.
        raise (DataError(str(error.cause)) if isinstance(error.cause, DataError) else error) from None
    except ray.exceptions.RayError as error:
        words = " ".join(str(error).split())[:300]
        raise RunError(f"workers died again and again ({words}). {advice}") from None
    finally:
        for one in flying:
            ray.cancel(one, force=True)


def resources_for(bundles: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Return the resources of all nodes of the Ray session.

    If they are too few for all workers, first wait for more nodes. An autoscaler may start these nodes.

    Args:
        bundles: For each worker, the resources that it needs. Each bundle must fit into one node.
        seconds: Longest time to wait in seconds; 0 returns at once.

    Returns:
        Amounts of `CPU`, `GPU` and other resources by name, summed over all nodes.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    found = _cluster_resources()
    if seconds and lacking(bundles, found):
        # Ask for a placement group only to make an autoscaler start nodes. After the group is removed, the nodes stay
        # until they were idle for some time, so the workers find them.
        group = placement_group(bundles)
        try:
            group.wait(seconds)
        finally:
            remove_placement_group(group)
        found = _cluster_resources()
    return found


def _cluster_resources() -> dict[str, float]:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    return resources


def lacking(bundles: list[dict[str, float]], available: dict[str, float]) -> dict[str, float]:
    """Return the Ray resources, such as `CPU`, of which a session has too little for all workers together.

    Args:
        bundles: For each worker, the resources that it needs.
        available: Amounts of the session's resources by name.

    Returns:
        By name of the resource, the amount that all workers together need. Resources that suffice are left out.
    """
    needed = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for bundle in bundles for kind in bundle}
    return {kind: amount for kind, amount in needed.items() if amount > available.get(kind, 0.0)}
