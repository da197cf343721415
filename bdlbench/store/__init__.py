"""The only writer and reader of results: a folder a run, a record that makes it count, put in place last."""

from bdlbench.store.errors import NoRoom, RunBusy, RunExists, StoreError
from bdlbench.store.store import Store
from bdlbench.store.writer import RunWriter

__all__ = ["NoRoom", "RunBusy", "RunExists", "RunWriter", "Store", "StoreError"]
