"""Protected files: Gramine's encrypted file format, read and written at random, crash-safe.

>>> from adyton.pfile import Memory, ProtectedFile
>>> from adyton.values import Key128
>>> key, host = Key128.generate(), Memory()
>>> with ProtectedFile.create(host, key, path="in/model.pt") as file:
...     file.write_at(0, b"weights")
>>> with ProtectedFile.open(host, key, path="in/model.pt") as file:
...     file.read_at(0, file.size)
b'weights'
"""

from adyton.pfile.backing import Backing, Memory, OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.paths import normalise

__all__ = ["Backing", "Memory", "OSFile", "ProtectedFile", "normalise"]
