"""Laplace's approximation by laplace-torch, as a program of its own: ``python laplace_torch.py problem.npz found.npz``.

It stands alone, so that an interpreter that has PyTorch and laplace-torch, and nothing of this project, can run it.

``problem.npz``: ``x`` (N, d), ``y`` (N,) floats or integer labels, ``x_test`` (n, d); of an MLP with tanh units, in the
order of its layers, ``kernel0`` (in, out), ``bias0`` (out,), ``kernel1``, ...; ``precision0``, ... alike: the prior
precision (weight, bias) of each layer; ``sigma``, the noise of a regression, or NaN for a classification.

``found.npz``, for each structure ``full``, ``diagonal`` and ``last_layer``: ``<structure>_precision`` (D, D) or (D,),
parameters layer by layer, weights (out, in) before biases; ``<structure>_variance`` (n, K, K) of the linearised outputs
at ``x_test``; ``<structure>_evidence``, the log marginal likelihood.
"""

import sys

import numpy as np
import torch
from laplace import Laplace

STRUCTURES = {"full": ("all", "full"), "diagonal": ("all", "diag"), "last_layer": ("last_layer", "full")}


def main(problem_path: str, found_path: str) -> None:
    """Fit the three structures around the given weights."""
    problem = dict(np.load(problem_path))
    depth = sum(name.startswith("kernel") for name in problem)
    layers: list[torch.nn.Module] = []
    precisions = []
    for index in range(depth):
        kernel, bias = problem[f"kernel{index}"], problem[f"bias{index}"]
        layer = torch.nn.Linear(*kernel.shape).double()
        layer.weight.data = torch.tensor(kernel.T.copy())
        layer.bias.data = torch.tensor(bias)
        layers += [layer, torch.nn.Tanh()]
        of_weight, of_bias = problem[f"precision{index}"]
        precisions.append(np.concatenate([np.full(kernel.size, of_weight), np.full(bias.size, of_bias)]))
    network = torch.nn.Sequential(*layers[:-1])
    regression = bool(np.isfinite(problem["sigma"]))
    y = torch.tensor(problem["y"])
    rows = torch.utils.data.TensorDataset(torch.tensor(problem["x"]), y[:, None] if regression else y)
    found = {}
    for name, (subset, structure) in STRUCTURES.items():
        prior = precisions[-1] if subset == "last_layer" else np.concatenate(precisions)
        fit = Laplace(
            network,
            "regression" if regression else "classification",
            subset_of_weights=subset,
            hessian_structure=structure,
            sigma_noise=float(problem["sigma"]) if regression else 1.0,
            prior_precision=torch.tensor(prior),
        )
        fit.fit(torch.utils.data.DataLoader(rows, batch_size=5))
        _, variance = fit._glm_predictive_distribution(torch.tensor(problem["x_test"]))
        found[f"{name}_precision"] = fit.posterior_precision.detach().numpy()
        found[f"{name}_variance"] = variance.detach().numpy()
        found[f"{name}_evidence"] = fit.log_marginal_likelihood().detach().numpy()
    np.savez(found_path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
