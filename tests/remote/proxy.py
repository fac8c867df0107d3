"""A line between a client and a server that can be cut, held, and counted."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Line:
    """Passes bytes on between whoever connects and a server.

    Attributes:
        cuts: for each connection to come, after how many bytes from the server it is cut; a
            connection past the end of the list is not.
        held: whether bytes from the server are kept back, with all connections open.
        connections: how many there were.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname or "", parts.port or 0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.cuts: list[int] = []
        self.connections = 0
        self._held = threading.Event()
        self._held.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        self._held.clear()

    def let_go(self) -> None:
        self._held.set()

    def close(self) -> None:
        self._held.set()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.connections += 1
                cut = self.cuts.pop(0) if self.cuts else None
                threading.Thread(target=self._serve, args=(client, cut), daemon=True).start()

    def _serve(self, client: socket.socket, cut: int | None) -> None:
        with client, suppress(OSError):
            server = socket.create_connection(self._server)
            with server:
                up = threading.Thread(target=self._up, args=(client, server), daemon=True)
                up.start()
                self._down(server, client, cut)
                for end in (client, server):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                up.join()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(65536):
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket, cut: int | None) -> None:
        left = cut
        while piece := server.recv(65536):
            self._held.wait(60.0)
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            client.sendall(piece)
            if left == 0:
                return
