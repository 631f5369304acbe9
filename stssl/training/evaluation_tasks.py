"""Compute the logits of a run on Ray workers, on this machine or a cluster."""

import socket
from pathlib import Path

import torch

from stssl.base.errors import RunError, StsslError
from stssl.base.paths import is_url
from stssl.base.ray_session import connected_ray
from stssl.training.trained_run import AskedLogits, Elsewhere, predict_share

_RETRIES = 3
"""Number of times that Ray computes a share again after its worker or node died."""


def predict_on_ray(workers: int) -> Elsewhere:
    """Return a function that computes the logits of a run on Ray workers.

    The argument of this function says which run and patches; it returns logits [patches, classes] by network. Each
    worker uses one CPU. It also uses one GPU, if Ray has GPUs and the user did not ask for the CPU.

    Args:
        workers: Number of workers. `RAY_ADDRESS` names a cluster; without it, Ray starts on this machine.
    """

    def predict(asked: AskedLogits) -> dict[str, torch.Tensor]:
        import ray

        with connected_ray(cpus=workers):
            found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray has no types here
            gpus = 1 if asked.device != "cpu" and found.get("GPU", 0) >= 1 else 0
            task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)(_task)
            shares = [task.remote(asked, (number, workers)) for number in range(workers)]
            try:
                parts: list[dict[str, torch.Tensor]] = ray.get(shares)
            except ray.exceptions.RayTaskError as error:
                # Raise the worker's own error if a user's mistake caused it: Ray's error has a traceback of many lines.
                raise (error.cause if isinstance(error.cause, StsslError) else error) from None
            except ray.exceptions.RayError as error:
                words = " ".join(str(error).split())[:300]
                raise RunError(f"workers died again and again ({words}): give fewer --workers.") from None
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return predict


def _task(asked: AskedLogits, share: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Compute, inside a Ray worker, the logits of each network of a run for this worker's share of patches.

    Args:
        asked: Run, part of the data, and metadata of the logits to compute.
        share: Number of the worker, counted from 0, and number of workers.

    Returns:
        [patches of the share, classes] logits by network, on the CPU.
    """
    torch.set_num_threads(1)
    if not is_url(asked.path) and not Path(asked.path).exists():
        raise RunError(f"{asked.path} is not there on {socket.gethostname()}: all nodes must see the run and its store")
    return predict_share(asked, share)
