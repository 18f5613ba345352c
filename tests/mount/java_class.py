"""A Java program without a Java compiler: `main` copies secret.txt to out.txt, as bytes of a class file.

The format is that of the Java Virtual Machine Specification, chapter 4. Its version is 52 (Java 8): every JVM takes it.
"""

from __future__ import annotations

import struct


def copying_class(name: str, source: str, target: str) -> bytes:
    """The class file of a class whose main calls Files.write(Path.of(target), Files.readAllBytes(Path.of(source)))."""
    pool: list[bytes] = []

    def add(entry: bytes) -> int:
        if entry not in pool:
            pool.append(entry)
        return pool.index(entry) + 1

    def text(value: str) -> int:
        return add(b"\x01" + struct.pack(">H", len(value)) + value.encode())

    def pointing(tag: int, *indices: int) -> int:
        return add(bytes((tag,)) + struct.pack(f">{len(indices)}H", *indices))

    def a_class(value: str) -> int:
        return pointing(7, text(value))

    def method(tag: int, owner: str, called: str, kind: str) -> int:
        return pointing(tag, a_class(owner), pointing(12, text(called), text(kind)))

    paths = method(11, "java/nio/file/Path", "of", "(Ljava/lang/String;[Ljava/lang/String;)Ljava/nio/file/Path;")
    read = method(10, "java/nio/file/Files", "readAllBytes", "(Ljava/nio/file/Path;)[B")
    kind = "(Ljava/nio/file/Path;[B[Ljava/nio/file/OpenOption;)Ljava/nio/file/Path;"
    write = method(10, "java/nio/file/Files", "write", kind)

    def nothing_of(element: str) -> bytes:
        return b"\x03\xbd" + struct.pack(">H", a_class(element))  # iconst_0, anewarray

    def path(value: str) -> bytes:
        constant = pointing(8, text(value))
        return (
            b"\x13" + struct.pack(">H", constant) + nothing_of("java/lang/String") + b"\xb8" + struct.pack(">H", paths)
        )

    code = path(target) + path(source) + b"\xb8" + struct.pack(">H", read)  # invokestatic
    code += nothing_of("java/nio/file/OpenOption") + b"\xb8" + struct.pack(">H", write) + b"\x57\xb1"  # pop, return
    body = struct.pack(">HHI", 4, 1, len(code)) + code + bytes(4)
    attribute = struct.pack(">HI", text("Code"), len(body)) + body
    main = struct.pack(">HHHH", 0x0009, text("main"), text("([Ljava/lang/String;)V"), 1) + attribute
    this, above = a_class(name), a_class("java/lang/Object")
    head = struct.pack(">IHHH", 0xCAFEBABE, 0, 52, len(pool) + 1) + b"".join(pool)
    return head + struct.pack(">HHHHHH", 0x0021, this, above, 0, 0, 1) + main + bytes(2)
