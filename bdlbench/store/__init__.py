"""The store writes and reads all results. Each run has a folder, in which its record is written last."""

from bdlbench.store.errors import NoRoom, RunBusy, RunExists, StoreError
from bdlbench.store.store import Store
from bdlbench.store.writer import RunWriter

__all__ = ["NoRoom", "RunBusy", "RunExists", "RunWriter", "Store", "StoreError"]
