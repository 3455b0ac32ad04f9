"""Files that a command was given but did not use, counted and listed by reason."""

from __future__ import annotations

from collections.abc import Iterable

NUM_NAMED = 4  # listed per reason
# Files that operating systems leave in folders and archives: counted, but not listed.
SYSTEM = "hidden or the system's"
SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db")


def is_systems(name: str) -> bool:
    """Return whether a file or folder is hidden or created by the operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


class UnusedFiles:
    """Names of unused files by reason."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: object) -> None:
        """Add a file."""
        self.names.setdefault(reason, []).append(str(name))

    def update(self, other: UnusedFiles) -> None:
        """Add all files of another collection."""
        for reason, names in other.names.items():
            self.names.setdefault(reason, []).extend(names)

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def __str__(self) -> str:
        """Return a summary such as `3 not used: 2 no images (a.txt, b.csv), 1 hidden`."""
        parts = []
        for reason, names in sorted(self.names.items(), key=lambda item: item[0] == SYSTEM):
            parts.append(f"{len(names)} {reason}{'' if reason == SYSTEM else _named(names)}")
        return f"{len(self)} not used: " + ", ".join(parts)


def _named(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:NUM_NAMED])
    more = len(names) - NUM_NAMED
    return f" ({shown}, and {more} more)" if more > 0 else f" ({shown})"
