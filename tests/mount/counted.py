"""The file server of `tests.mount.served`, which tells every request: its name, and the bytes of a write."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    from adyton.vfs.fuse import Adapter
    from tests.mount.served import main

    call = Adapter._call

    def tell(self: Adapter, operation: Callable[..., int | None], *args: Any) -> int:
        size = f" {args[2]}" if operation.__name__ == "write" else ""
        os.write(1, f"{operation.__name__}{size}\n".encode())
        return call(self, operation, *args)

    Adapter._call = tell  # type: ignore[method-assign]
    main()
