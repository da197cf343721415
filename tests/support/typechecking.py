"""The type checker for jaxtyping's import hook: beartype, which accepts more types for an annotation ``float``.

The numbers of a configuration are floats. While a program is traced they are JAX scalars. An int is also accepted as a
float (PEP 484).
"""

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({float: float | int | np.floating | jax.Array})))
