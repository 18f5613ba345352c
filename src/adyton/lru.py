"""A bounded map that drops the least recently used value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Recent(Generic[_Key, _Value]):
    """At most `limit` values by key. Any thread may use it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[_Key, _Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._kept)

    def get(self, key: _Key) -> _Value | None:
        """The value of a key, which counts as used now. None where there is none."""
        with self._lock:
            value = self._kept.get(key)
            if value is not None:
                self._kept.move_to_end(key)
            return value

    def peek(self, key: _Key) -> _Value | None:
        """The value of a key, without counting as a use. None where there is none."""
        return self._kept.get(key)

    def newest(self) -> _Value | None:
        """The value that was put or got last."""
        with self._lock:
            return next(reversed(self._kept.values()), None)

    def put(self, key: _Key, value: _Value) -> None:
        """Keep a value as the most recently used. At the limit the least recently used value is dropped."""
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
