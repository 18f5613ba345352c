"""Makes the RSA-4096 test keys of this folder: run it in this folder. They protect nothing; new ones serve as well."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def main() -> None:
    """Write test-rsa4096-NAME.pem for every name."""
    for name in ("ark", "ask", "other"):
        key = rsa.generate_private_key(65537, 4096)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (Path(__file__).parent / f"test-rsa4096-{name}.pem").write_bytes(pem)


if __name__ == "__main__":
    main()
