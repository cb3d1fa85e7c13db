"""Parts of a data source: rows such as [0, 364], or shares such as [90%, 100%]. Standard library only."""

from typing import Any


def percent(value: object) -> float | None:
    """90.0 for "90%", None for anything that is no percentage from 0 to 100."""
    if not isinstance(value, str) or not value.endswith("%"):
        return None
    try:
        number = float(value[:-1])
    except ValueError:
        return None
    return number if 0 <= number <= 100 else None


def is_part(take: list[Any] | None) -> bool:
    """Whether SourceConfig.take is null, two rows or two shares, the first below the second."""
    if take is None:
        return True
    if len(take) != 2:
        return False
    shares = [percent(value) for value in take]
    if shares[0] is not None and shares[1] is not None:
        return shares[0] < shares[1]
    rows = [value for value in take if isinstance(value, int) and not isinstance(value, bool)]
    return len(rows) == 2 and 0 <= rows[0] < rows[1]
