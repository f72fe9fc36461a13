"""Boxes and clicks that prompt a model for masks, the task of Seg-R1."""

from seg_jax.tasks.prompted.clicker import Clicked, trace
from seg_jax.tasks.prompted.mixture import Mixture
from seg_jax.tasks.prompted.prompted import ClicksExample, ClicksPrediction, Prompted
from seg_jax.tasks.prompted.questions import Wording
from seg_jax.tasks.prompted.scores import Truth

__all__ = [
    "Clicked",
    "ClicksExample",
    "ClicksPrediction",
    "Mixture",
    "Prompted",
    "Truth",
    "Wording",
    "trace",
]
