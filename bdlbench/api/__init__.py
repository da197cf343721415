"""The Python interface: fit a model to arrays, predict, save and load."""

from bdlbench.api.loading import load
from bdlbench.api.posterior import Posterior, fit
from bdlbench.api.prediction import Prediction
from bdlbench.api.scoring import score_table

__all__ = ["Posterior", "Prediction", "fit", "load", "score_table"]
