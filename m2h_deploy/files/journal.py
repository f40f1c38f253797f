"""Keep the measurements of a long run in a file, one line each, so that a run that was killed can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2h_deploy.causes import failure
from m2h_deploy.files.text import finite


class Journal:
    """Values by key. Every value is on disk before the next is measured; a line that was cut off is left out."""

    def __init__(self, file: Path, settings: str) -> None:
        """Open the journal; only values of the same `settings`, a digest, are taken from an earlier run."""
        self.path, self._settings = file, settings
        self._values: dict[str, Any] = {}
        try:
            content = file.read_text(encoding="utf-8") if file.is_file() else ""
        except (OSError, ValueError):
            content = ""  # a damaged journal costs time, not results
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                if entry["settings"] != settings:
                    continue
                if "value" in entry:
                    self._values[entry["key"]] = entry["value"]
                else:
                    self._values.pop(entry["key"], None)
            except (ValueError, KeyError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        """Return the value of `key`; None if it is not known."""
        return self._values.get(key)

    def forget(self, key: str) -> None:
        """Forget a value, which is then measured again, by later runs too. Raises M2HError as `once` does."""
        if key in self._values:
            del self._values[key]
            self._append({"settings": self._settings, "key": key})

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return the value of `key`, measured by `measure` (in JSON's types) unless it is known.

        Raises:
            M2HError: The journal cannot be written.
        """
        if key not in self._values:
            value = finite(measure())
            self._values[key] = value
            self._append({"settings": self._settings, "key": key, "value": value})
        return self._values[key]

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # A line that a killed run cut off must not swallow this one.
                file.write(("\n" if self.path.stat().st_size else "") + json.dumps(entry))
        except OSError as error:
            raise failure(error, f"cannot write {self.path}") from None
