"""A file server like that of `tests.mount.served`, to lie below another: names of recovery logs are names to it."""

from __future__ import annotations

if __name__ == "__main__":
    from adyton.vfs import encrypted
    from tests.mount.served import main

    vars(encrypted)["RECOVERY_SUFFIX"] = ".below.recovery"
    main()
