"""The checker behind jaxtyping's import hook: beartype, with an int wherever a float is asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
