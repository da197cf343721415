"""The checker behind jaxtyping's import hook: beartype, with what stands for a float in this library.

The numbers of a configuration are floats; while a program is traced they are JAX scalars, and an int is a float (PEP
484).
"""

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({float: float | int | np.floating | jax.Array})))
