"""Data sets: split by their published rules, scaled by their training rows, and stored with units and a checksum.

Each set has a factory in a module of this package and a yaml with the same keys in ``conf/data``. Importing this
package reads no data and imports no library that contains data.
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
