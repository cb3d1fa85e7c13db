"""File names as registries: a part is added by adding its file, and a misspelt name lists the files there are."""

import difflib
import importlib
import pkgutil
from types import ModuleType

from mrpo_ds.errors import require


def names(package: str) -> list[str]:
    """The sorted names of the modules in a package, e.g. 'mrpo_ds.losses'; those starting with '_' are private."""
    folder = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder) if not m.ispkg and not m.name.startswith("_"))


def load_by_file_name(package: str, name: str, key: str) -> ModuleType:
    """Import the module of a package whose file is called name.

    Args:
        package: full name of the package, e.g. "mrpo_ds.losses".
        name: file name without .py, as a user wrote it.
        key: where the user wrote it, e.g. "loss.name", for the message.

    Raises:
        ConfigError: there is no such file; the message lists those there are and the nearest of them.
    """
    known = names(package)
    nearest = difflib.get_close_matches(name, known, n=1)
    mend = f"Did you mean {nearest[0]!r}?" if nearest else ""
    require(name in known, key, name, " | ".join(known), mend)
    return importlib.import_module(f"{package}.{name}")
