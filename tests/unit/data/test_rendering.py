"""The ids that a model sees, against ids and texts written out by hand."""

from typing import Any

import pytest
from conftest_import import *  # placeholder
