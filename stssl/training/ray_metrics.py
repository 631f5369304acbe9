"""Pass a run's newest metrics to Ray, which offers them to Prometheus on each node of the cluster."""

import sys
from typing import NamedTuple

from stssl.recipes.recipe import RunRecipe


class RunGauge(NamedTuple):
    """Describe a gauge: a metric of a run that Prometheus can read.

    Attributes:
        column: Key in the rows of `metrics.jsonl` with the values of this metric; empty for the
            gauges of the numbers of steps, which have other sources.
        about: Text that Prometheus shows with the metric.
        factor: Number by which to multiply a value in the row to get the unit of the metric.
    """

    column: str
    about: str
    factor: float = 1.0


EXPORTED = {
    "stssl_step": RunGauge("", "Steps taken so far."),
    "stssl_steps": RunGauge("", "Steps of the whole run."),
    "stssl_loss": RunGauge("loss", "Training loss, mean over the last logging.every steps."),
    "stssl_images_per_second": RunGauge("images_per_s", "Patches that all workers together train on in a second."),
    "stssl_step_seconds": RunGauge("seconds_per_step", "Seconds that a step takes."),
    "stssl_data_wait_ratio": RunGauge("data_wait", "Share of the time that steps wait for data, from 0 to 1."),
    "stssl_learning_rate": RunGauge("learning_rate", "Learning rate of the newest step."),
    "stssl_memory_bytes": RunGauge("memory_gb", "Most memory so far of rank 0: of its GPU, else of its process.", 1e9),
}
"""Metrics of rows of kind `train`, by name. Ray writes `ray_` before each name."""
VALIDATION = "stssl_validation"
"""Name of the metric with validation scores. Its tag `score` holds the name of the score."""


def on_ray() -> bool:
    """Return True if this process is connected to Ray, so that Ray can export its metrics."""
    if "ray" not in sys.modules:  # do not import Ray, which takes time, for a run that does not use it
        return False
    import ray

    return ray.is_initialized()


class RayGauges:
    """Set gauges of Ray to a run's newest metrics. Prometheus reads the gauges from the nodes' metrics ports."""

    def __init__(self, recipe: RunRecipe) -> None:
        """Create the gauges for the run of `recipe`. Each gets the tag `run` with the run's name."""
        from ray.util.metrics import Gauge

        self.gauges = {name: Gauge(name, one.about, ("run",)) for name, one in EXPORTED.items()}
        scores = "Validation score of the averaged student, named by the tag `score`."
        self.gauges[VALIDATION] = Gauge(VALIDATION, scores, ("run", "score"))
        self.tags = {"run": recipe.name}
        self.gauges["stssl_steps"].set(recipe.schedule.steps, self.tags)

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Set the gauges to the values of a row of metrics.

        Args:
            kind: `train` or `validation`.
            step: Number of steps taken.
            values: Finite values by the metric's name.
        """
        self.gauges["stssl_step"].set(step, self.tags)
        if kind == "validation":
            for name, value in values.items():
                self.gauges[VALIDATION].set(value, self.tags | {"score": name})
            return
        for name, one in EXPORTED.items():
            if one.column in values:
                self.gauges[name].set(values[one.column] * one.factor, self.tags)

    def close(self) -> None:
        """Do nothing: Ray drops the gauges of a run when its process ends."""
