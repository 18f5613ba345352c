"""Small servers on 127.0.0.1 for tests: one that says exactly the bytes it is told, one that runs an application."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from adyton.net.pcs_server import bind, url_of

Handler = Callable[[socket.socket, threading.Event], None]


@contextmanager
def raw_server(handler: Handler, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose every connection is given to `handler` (with an event that says: stop); yields its address."""
    listening = bind("127.0.0.1", 0)
    stop = threading.Event()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            served = context.wrap_socket(connection, server_side=True) if context else connection
            with served:
                handler(served, stop)

    def work() -> None:
        workers: list[threading.Thread] = []
        while not stop.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                break
            workers.append(threading.Thread(target=one, args=(connection,)))
            workers[-1].start()
        for worker in workers:
            worker.join(10)

    thread = threading.Thread(target=work)
    thread.start()
    url = url_of(listening)
    try:
        yield url.replace("http:", "https:").replace("127.0.0.1", "localhost") if context else url
    finally:
        stop.set()
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def saying(answer: bytes) -> Handler:
    """A handler that reads the request and says these bytes."""

    def handle(connection: socket.socket, _stop: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return handle


def dripping(head: bytes, drop: bytes, every_s: float) -> Handler:
    """A handler that says the head at once and then one drop at a time, for ever."""

    def handle(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(head)
        while not stop.wait(every_s):
            connection.sendall(drop)

    return handle


@contextmanager
def serving(application: Starlette) -> Iterator[str]:
    """An application behind uvicorn; yields its address."""
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(application, log_level="error", lifespan="off", ws="none", http="h11")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
