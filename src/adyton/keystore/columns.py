"""Column types that check each value that they read, since SQLite's columns can hold values of any type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import sqlalchemy as sa

from adyton.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_WORDS: Final[Mapping[type, str]] = {bytes: "bytes", str: "text", int: "a number from 0 on"}


class _Checked(sa.types.TypeDecorator[Any]):
    """A value of one type. Any other value, NULL too, raises StoreError."""

    cache_ok = True
    kinds: ClassVar[tuple[type, ...]]

    def result_processor(self, _dialect: sa.Dialect, _coltype: object) -> Callable[[Any], Any]:
        """The check of each value from the database, in place of the driver's conversion."""
        kinds = self.kinds
        make = kinds[0]

        def check(value: Any) -> Any:
            if type(value) is not make and isinstance(value, kinds):
                value = make(value)
            if type(value) is make and not (isinstance(value, int) and value < 0):
                return value
            raise StoreError(
                "a value in the database is of another kind than Adyton writes",
                check="kind of a value in the database",
                expected=_WORDS[make],
                seen="a number below 0" if type(value) is int else type(value).__name__,
                remedy="something other than Adyton wrote to the database: restore the newest backup (adyton restore)",
            )

        return check


class Octets(_Checked):
    """Bytes."""

    impl = sa.LargeBinary
    cache_ok = True
    kinds = (bytes, memoryview, bytearray)


class Words(_Checked):
    """Text of limited length."""

    impl = sa.String
    cache_ok = True
    kinds = (str,)


class LongText(_Checked):
    """Text of any length."""

    impl = sa.Text
    cache_ok = True
    kinds = (str,)


class Number(_Checked):
    """A whole number, 0 or more, that fits a signed 64-bit column."""

    impl = sa.BigInteger
    cache_ok = True
    kinds = (int,)


class SmallNumber(_Checked):
    """A whole number, 0 or more, that fits a signed 32-bit column."""

    impl = sa.Integer
    cache_ok = True
    kinds = (int,)
