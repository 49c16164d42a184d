"""What writers share that send a measurement in one call: its values, collected in a row."""

from typing import Any


class RowWriter:
    """Collects values by name until another step or a flush; a subclass sends them."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._row: dict[str, Any] = {}
        self._step = 0

    def flush(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._send(row, self._step)

    def close(self) -> None:
        self.flush()

    def _add(self, name: str, value: Any, step: int) -> None:
        if step != self._step:
            self.flush()
        self._step = step
        self._row[name] = value

    def _send(self, row: dict[str, Any], step: int) -> None:
        raise NotImplementedError
