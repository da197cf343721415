"""Devices are set before any test uses JAX: collection imports this file first."""

from bdlbench.run import setup_jax

setup_jax()
