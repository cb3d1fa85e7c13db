"""`python -m mrpo_ds`, which is also how the deepspeed launcher (--module mrpo_ds) and torchrun (-m) start a rank."""

import sys

from mrpo_ds.cli import main

sys.exit(main())
