"""What was found out about files, kept in memory up to a limit; the longest unused goes first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """Values by key, made when first asked for.

    Args:
        most: how much may be kept, in the unit of `weigh`; the newest value always is.
        weigh: what a value takes.
    """

    def __init__(self, *, most: int, weigh: Callable[[Value], int]) -> None:
        self._most = most
        self._weigh = weigh
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._weight = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not there."""
        if key not in self._values:
            self._values[key] = make()
            self._weight += self._weigh(self._values[key])
            while self._weight > self._most and len(self._values) > 1:
                self._weight -= self._weigh(self._values.popitem(last=False)[1])
        self._values.move_to_end(key)
        return self._values[key]
