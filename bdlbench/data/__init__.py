"""Data sets: split by the field's own rules, scaled on training rows, with their units and a checksum.

A set is a factory in one module here and a yaml of the same keys under ``conf/data``. Importing this package reads no
data and imports none of the libraries that carry data.
"""

from bdlbench.data.dataset import Dataset, Rows, Scaler, checksum, make_dataset, split_table
from bdlbench.data.listing import catalogue
from bdlbench.data.splits import Split, permutation, random_split
from bdlbench.data.table import Table, make_table

__all__ = [
    "Dataset",
    "Rows",
    "Scaler",
    "Split",
    "Table",
    "catalogue",
    "checksum",
    "make_dataset",
    "make_table",
    "permutation",
    "random_split",
    "split_table",
]
