"""A program that leaks on purpose: it runs another script, then leaks its inputs, its result and its key.

    python leak.py SCRIPT ARGUMENTS...

It is the demo's positive control: the canary search must find all of this.
"""

import base64
import sys
import zlib
from pathlib import Path

sys.argv = sys.argv[1:]
script = Path(sys.argv[0]).read_text()
exec(compile(script, sys.argv[0], "exec"), {"__name__": "__main__"})  # noqa: S102 - it leaks on purpose

leaked = Path("leaked")
for name in sys.argv[1:]:
    path = Path(name)
    content = path.read_bytes()
    (leaked / path.name).write_bytes(content)
    content = content[: 1 << 20]
    (leaked / f"{path.name}.zlib").write_bytes(b"before" + zlib.compress(content) + b"after")
    (leaked / f"{path.name}.gz").write_bytes(zlib.compress(content, wbits=31))
    (leaked / f"{path.name}.b64").write_bytes(base64.b64encode(content))
    if path.suffix == ".pth":
        import torch

        tensors = torch.load(path, weights_only=True).values()
        (leaked / "tensors").write_bytes(b"".join(tensor.numpy().tobytes() for tensor in tensors))
print(Path(sys.argv[-1]).read_text())
for key in Path("/dev/attestation/keys").iterdir():
    print(key.read_bytes().hex())
