"""Warn of results in a Ray job's own copy of the working folder: Ray deletes this copy after the job."""

from pathlib import Path

from stssl.base.paths import is_url

JOB_COPIES = "working_dir_files"
"""Name of the folder in which Ray keeps the copies of working folders, on each node."""


def in_job_copy(path: str | Path) -> bool:
    """Return True if a path, relative to the current folder, lies in a Ray job's copy of the working folder."""
    return not is_url(str(path)) and JOB_COPIES in Path(path).absolute().parts


def vanishing(what: str, path: str | Path) -> str | None:
    """Return a warning if a result would be written into a Ray job's copy of the working folder; else None.

    Args:
        what: Key or option that sets the path, such as `launch.storage`.
        path: Path or URL of the result.
    """
    if not in_job_copy(path):
        return None
    return (
        f"{what}: {path} lies in this job's copy of the working folder, on one node. Ray deletes this copy after the "
        "job, and the results with it. Give a folder that all nodes share, such as /shared/runs"
    )
