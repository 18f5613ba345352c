"""Whole files and trees in and out of protected files.

>>> from pathlib import Path
>>> from adyton.storage import decrypt_file, encrypt_file
>>> from adyton.values import Key128
>>> key = Key128.generate()
>>> encrypt_file(Path("model.pt"), Path("model.pf"), key, path="in/model.pt")  # doctest: +SKIP
>>> decrypt_file(Path("model.pf"), Path("model.again.pt"), key)  # doctest: +SKIP
"""

from adyton.storage.files import decrypt_file, decrypt_into, encrypt_file

__all__ = ["decrypt_file", "decrypt_into", "encrypt_file"]
