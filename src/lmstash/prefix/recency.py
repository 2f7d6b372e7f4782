"""What was used how long ago: a list that a use moves to its hot end in constant time.

The list goes through the items themselves, so that an item costs two references and a move costs a few assignments. No
clock is read: the order is the order of use. Not locked.
"""

from __future__ import annotations


class Listed:
    """Something that may be in one `Recency` list."""

    __slots__ = ("colder", "hotter")

    colder: Listed | None
    """The one used before it; None while it is in no list."""
    hotter: Listed | None

    def __init__(self) -> None:
        self.colder = self.hotter = None


class Recency(Listed):
    """The list. It is its own two ends: what is `hotter` than it is the coldest item."""

    __slots__ = ()

    def __init__(self) -> None:
        self.colder = self.hotter = self

    def touch(self, item: Listed) -> None:
        """Move an item, listed or not, to the hot end."""
        hottest = self.colder
        if item is hottest:
            return
        colder, hotter = item.colder, item.hotter
        if colder is not None:
            colder.hotter, hotter.colder = hotter, colder  # type: ignore[union-attr]
        hottest.hotter = self.colder = item  # type: ignore[union-attr]
        item.colder, item.hotter = hottest, self

    def add_coldest(self, item: Listed) -> None:
        """Put an item that is in no list at the cold end."""
        coldest = self.hotter
        item.colder, item.hotter = self, coldest
        coldest.colder = self.hotter = item  # type: ignore[union-attr]

    def remove(self, item: Listed) -> None:
        """Take an item out; nothing happens if it is in no list."""
        colder, hotter = item.colder, item.hotter
        if colder is not None:
            colder.hotter, hotter.colder = hotter, colder  # type: ignore[union-attr]
            item.colder = item.hotter = None

    def replace(self, item: Listed, other: Listed) -> None:
        """Let `other`, which is in no list, have the place of `item`."""
        colder, hotter = item.colder, item.hotter
        if colder is not None:
            colder.hotter = hotter.colder = other  # type: ignore[union-attr]
            other.colder, other.hotter = colder, hotter
            item.colder = item.hotter = None
