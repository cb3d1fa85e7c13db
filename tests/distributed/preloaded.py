"""Imported once by the server that forks the ranks of tests.distributed.harness, instead of by each of them."""

import gc
from importlib import import_module

from tests.warm import IMPORTED

for module in ("tests.distributed.harness", "mrpo_ds.distributed.heartbeat", *IMPORTED):
    import_module(module)
gc.freeze()  # or the first collection of every rank visits, and so copies, all that was imported
