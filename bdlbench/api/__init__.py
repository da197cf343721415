"""The door from Python: fit a model to arrays, predict, save and load."""

from bdlbench.api.posterior import Posterior, fit
from bdlbench.api.prediction import Prediction

__all__ = ["Posterior", "Prediction", "fit"]
