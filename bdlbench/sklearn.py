"""scikit-learn estimators that use :func:`bdlbench.fit`, for pipelines, cross-validation and grid searches.

Predictions are computed in float64, so that a row's prediction does not depend on the other rows of the call.
``sample_weight`` is not supported, because a weighted likelihood is not the likelihood of any data.
"""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from bdlbench.api import Posterior, fit


class _Bayes(BaseEstimator):
    """The base of both estimators. As scikit-learn requires, constructors only store arguments and ``fit`` checks them."""

    def __init__(
        self,
        network: Any = "mlp",
        *,
        inference: Any = "nuts",
        prior: Any = "fan_in",
        likelihood: Any = "gaussian",
        temperature: Any = 1.0,
        standardize: Any = True,
        num_chains: Any = None,
        num_warmup: Any = None,
        num_samples: Any = None,
        batch_size: Any = None,
        options: Any = None,
        random_state: Any = None,
        progress: Any = False,
        precision: Any = "float32",
    ) -> None:
        self.network = network
        self.inference = inference
        self.prior = prior
        self.likelihood = likelihood
        self.temperature = temperature
        self.standardize = standardize
        self.num_chains = num_chains
        self.num_warmup = num_warmup
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.options = options
        self.random_state = random_state
        self.progress = progress
        self.precision = precision

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        seed = self.random_state
        if seed is None or not isinstance(seed, int | np.integer):
            seed = int(check_random_state(seed).randint(2**31))
        given = {name: getattr(self, name) for name in ("num_chains", "num_warmup", "num_samples", "batch_size")}
        self.posterior_: Posterior = fit(
            self.network,
            x,
            y,
            inference=self.inference,
            prior=self.prior,
            likelihood=self.likelihood,
            temperature=self.temperature,
            seed=int(seed),
            standardize=self.standardize,
            progress=self.progress,
            precision=self.precision,
            options={**{name: value for name, value in given.items() if value is not None}, **(self.options or {})},
        )

    def _prediction(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.posterior_.predict(validate_data(self, X, reset=False, dtype=np.float64), precision="float64")


class BayesRegressor(RegressorMixin, _Bayes):
    """A Bayesian neural network for regression; see :func:`bdlbench.fit`.

    Parameters
    ----------
    network, inference, prior, likelihood, temperature, standardize
        As in :func:`bdlbench.fit`.
    num_chains, num_warmup, num_samples, batch_size : int or None
        Options of the method's schedule; None takes the value of the preset.
    options : mapping or None
        Further options of the method, by their path.
    random_state : int, RandomState or None
        The seed of the fit.
    progress : bool
        Whether to show the progress of the fit.
    precision : "float32" or "float64"
        Precision of the fit. Predictions are always in float64.

    Attributes
    ----------
    posterior_ : bdlbench.Posterior
    n_features_in_ : int
    feature_names_in_ : array of str
        Only if X has named columns.
    """

    def fit(self, X: Any, y: Any) -> "BayesRegressor":
        """Fit to rows X (n, d) and real targets y (n,). Return the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self._fit(X, np.asarray(y, np.float64))
        return self

    def partial_fit(self, X: Any, y: Any) -> "BayesRegressor":
        """Update the posterior with more rows, see :meth:`bdlbench.Posterior.update`. The first call fits."""
        if not hasattr(self, "posterior_"):
            return self.fit(X, y)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=False)
        self.posterior_ = self.posterior_.update(X, np.asarray(y, np.float64))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means (n,) of the posterior predictive distribution in the units of y; with ``return_std`` also its sds (n,)."""
        found = self._prediction(X)
        return (found.mean, found.sd) if return_std else found.mean

    def sample_y(self, X: Any, n_samples: int = 1, random_state: int = 0) -> np.ndarray:
        """Draws of y from the posterior predictive distribution at rows X, (n, n_samples), in the units of y."""
        return self._prediction(X).sample(n_samples, seed=random_state).T


class BayesClassifier(ClassifierMixin, _Bayes):
    """A Bayesian neural network for classification. The parameters are those of :class:`BayesRegressor`.

    Attributes
    ----------
    posterior_ : bdlbench.Posterior
    classes_ : array (K,)
    n_features_in_ : int
    """

    def __init__(
        self,
        network: Any = "mlp",
        *,
        inference: Any = "nuts",
        prior: Any = "fan_in",
        likelihood: Any = "categorical",
        temperature: Any = 1.0,
        standardize: Any = True,
        num_chains: Any = None,
        num_warmup: Any = None,
        num_samples: Any = None,
        batch_size: Any = None,
        options: Any = None,
        random_state: Any = None,
        progress: Any = False,
        precision: Any = "float32",
    ) -> None:
        super().__init__(
            network,
            inference=inference,
            prior=prior,
            likelihood=likelihood,
            temperature=temperature,
            standardize=standardize,
            num_chains=num_chains,
            num_warmup=num_warmup,
            num_samples=num_samples,
            batch_size=batch_size,
            options=options,
            random_state=random_state,
            progress=progress,
            precision=precision,
        )

    def fit(self, X: Any, y: Any) -> "BayesClassifier":
        """Fit to rows X (n, d) and classes y (n,). Return the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self._fit(X, y)
        classes = self.posterior_.classes
        assert classes is not None
        self.classes_ = classes
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "BayesClassifier":
        """Update the posterior with more rows. The first call fits; its y must contain all ``classes``."""
        if not hasattr(self, "posterior_"):
            if classes is not None and set(np.unique(y)) != set(classes):
                raise ValueError("The first rows must hold all classes: a likelihood is of the classes it has seen.")
            return self.fit(X, y)
        X, y = validate_data(self, X, y, dtype=np.float64, reset=False)
        self.posterior_ = self.posterior_.update(X, y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, K) in the order of ``classes_``, averaged over the draws of the posterior."""
        return self._prediction(X).probs

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row (n,)."""
        return self._prediction(X).labels

    def sample_y(self, X: Any, n_samples: int = 1, random_state: int = 0) -> np.ndarray:
        """Draws of the class from the posterior predictive distribution at rows X, (n, n_samples)."""
        return self._prediction(X).sample(n_samples, seed=random_state).T
