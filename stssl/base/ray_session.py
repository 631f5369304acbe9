"""Connect to Ray: to the session of this process, to a cluster with an address, or to a new local session."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

from stssl.base.errors import RunError


@contextlib.contextmanager
def connected_ray(address: str | None = None, dashboard: bool = False, cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray while the context lasts. If this process has a session already, use it and do not close it.

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
    """Restore the handler of a signal that Ray replaced. Ray's handler ends the process without a message."""
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def resources_for(bundles: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Return all resources of the Ray session. If they are too few, first wait for an autoscaler to start nodes.

    Args:
        bundles: Resources that each worker needs. Each bundle must fit into one node.
        seconds: Longest time to wait in seconds; 0 returns at once.

    Returns:
        Resources of all nodes together: `CPU`, `GPU` and others by name.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    found = _cluster_resources()
    if seconds and lacking(bundles, found):
        # A pending group makes an autoscaler start nodes. After its removal they stay for the idle time-out.
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
    """Find the Ray resources, such as `CPU`, that are too few for all workers together.

    Args:
        bundles: Resources that each worker needs.
        available: Resources of the session.

    Returns:
        The needed amount of each resource that is too small in `available`.
    """
    needed = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for bundle in bundles for kind in bundle}
    return {kind: amount for kind, amount in needed.items() if amount > available.get(kind, 0.0)}
