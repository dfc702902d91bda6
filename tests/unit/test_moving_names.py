"""The options of channels, tried on what they are for: a peer whose name comes to stand for another address."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.cluster.waiting import until
from vectorfleet.rpc_options import CHANNEL_OPTIONS, SERVER_OPTIONS

GRPCS_OWN_INTERVAL_S = 30
IPV4 = 1


class Names:
    """A name server of a few lines: answers every question for an IPv4 address with `address`, and others with nothing."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Names:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            (kind,) = struct.unpack_from(">H", query, end - 4)
            answer = b"\xc0\x0c" + struct.pack(">HHIH", IPV4, 1, 0, 4) + socket.inet_aton(self.address)
            found = kind == IPV4
            # Authoritative, no error; one question, and one answer or none.
            head = query[:2] + struct.pack(">HHHHH", 0x8580, 1, int(found), 0, 0)
            self._socket.sendto(head + query[12:end] + (answer if found else b""), sender)


@contextlib.contextmanager
def serving(address: str, port: int = 0) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), options=list(SERVER_OPTIONS))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    bound = server.add_insecure_port(f"{address}:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(None).wait()


def test_a_peer_is_found_again_where_its_name_leads_now() -> None:
    with Names("127.0.0.2") as names, contextlib.ExitStack() as stack:
        first = contextlib.ExitStack()
        port = first.enter_context(serving("127.0.0.2"))
        target = f"dns://127.0.0.1:{names.port}/shard-0.shard:{port}"
        channel = stack.enter_context(grpc.insecure_channel(target, options=list(CHANNEL_OPTIONS)))
        stub = health_pb2_grpc.HealthStub(channel)

        def answers() -> bool:
            return bool(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)

        until(answers, what="the first address")
        first.close()
        names.address = "127.0.0.3"
        stack.enter_context(serving("127.0.0.3", port))
        until(answers, within_s=GRPCS_OWN_INTERVAL_S / 2, what="the address that the name leads to now")
