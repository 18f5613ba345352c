"""A file server like that of `tests.mount.served`, to lie below another: names of recovery logs are names to it."""

from __future__ import annotations

if __name__ == "__main__":
    from adyton.vfs import encrypted, host_file, host_folder
    from tests.mount.served import main

    for module in (encrypted, host_file, host_folder):
        vars(module)["RECOVERY_SUFFIX"] = ".below.recovery"
    main()
