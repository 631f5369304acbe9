"""Reaching Ray: the session that is there, a cluster by address, or a local one for as long as it is needed."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from stssl.base.errors import RunError


@contextlib.contextmanager
def connected_ray(address: str | None = None, dashboard: bool = False, cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray while this lasts; a session that was there before is used and left alone.

    Args:
        address: Of a cluster; None takes `RAY_ADDRESS` or starts a local one.
        dashboard: Whether a local one has a dashboard (Tune needs it where trials are stopped early).
        cpus: Of a local one; None takes all.

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
            # Without "local", Ray would join any cluster that was started on this machine, also one that is gone.
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


def _take_back(number: signal.Signals, handler: Any) -> None:
    """Heed a signal as before Ray, whose own handler of it ends the process without a word."""
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def resources_for(bundles: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """All resources of the session, once it has had time to start nodes for some bundles that it has no room for.

    An autoscaler starts nodes for what is waited for, and keeps them for its idle time-out after that.

    Args:
        bundles: Each fits one node: the resources of a worker.
        seconds: How long to wait at most.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    found: dict[str, float] = ray.cluster_resources()
    if seconds and lacking(bundles, found):
        group = placement_group(bundles)
        try:
            group.wait(seconds)
        finally:
            remove_placement_group(group)
        found = ray.cluster_resources()
    return found


def lacking(bundles: list[dict[str, float]], available: dict[str, float]) -> dict[str, float]:
    """Compute the resources that some bundles need and `available` has too little of."""
    needed = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for bundle in bundles for kind in bundle}
    return {kind: amount for kind, amount in needed.items() if amount > available.get(kind, 0.0)}
