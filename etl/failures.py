"""Work of which one part's failure does not stop the others: every part is tried, what failed is raised at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from etl.errors import WarehouseError
from etl.faults import named
from etl.log import logger

# Of several exit codes, the one that running again helps least.
_GRAVEST_FIRST = (1, 5, 3, 4, 6)


class SeveralError(WarehouseError):
    """More than one part failed; the exit code is that of the gravest failure."""

    def __init__(self, sentence: str, failures: Iterable[WarehouseError]) -> None:
        super().__init__(sentence)
        self.exit_code = min((error.exit_code for error in failures), key=_GRAVEST_FIRST.index)


class Failures:
    """What failed of some parts."""

    def __init__(self) -> None:
        self._found: dict[str, Exception] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Keep the failure of a part for the end, so that the next one is tried."""
        try:
            yield
        except Exception as error:
            self._found[part] = named(error) or error
            logger.error("failed, the others go on", part=part, reason=str(self._found[part]))

    def raise_all(self) -> None:
        """Raise what failed, where something did: a defect first, with its own traceback.

        Raises
        ------
        WarehouseError
            The one failure, or a `SeveralError`.
        """
        known: dict[str, WarehouseError] = {}
        for part, error in self._found.items():
            if not isinstance(error, WarehouseError):
                raise error
            known[part] = error
        if len(known) == 1:
            raise next(iter(known.values()))
        if known:
            listed = "; ".join(f"{part}: {error}" for part, error in known.items())
            raise SeveralError(f"{len(known)} failed, the others are done: {listed}", known.values())
