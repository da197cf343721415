"""A statistic that shows the bias of a sampler without a Metropolis test. It needs no additional gradient."""

import jax.numpy as jnp

from bdlbench.types import Array


def configurational_temperature(theta: Array, grad: Array) -> Array:
    r"""One term of the virial average, :math:`-\theta^\top \nabla \log p(\theta) / D`.

    Integration by parts gives :math:`E[-\theta^\top \nabla \log p(\theta)] = D` for every density that falls fast enough
    in all directions, so the average over a chain is 1 where the chain has the law p (Wenzel et al. 2020, appendix I).
    The gradient may be any estimate that is unbiased given theta. Theta is not centred: a constant c that is subtracted
    from it changes the average by :math:`c^\top E[\nabla \log p] / D`, which is 0.

    Parameters
    ----------
    theta : array (D,)
        The point at which the gradient was taken.
    grad : array (D,)
        Gradient of the tempered log density, on all rows or scaled up from a batch.

    Returns
    -------
    scalar
        In units of the run's temperature.
    """
    return -jnp.vdot(theta, grad) / theta.size
