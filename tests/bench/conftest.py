"""Servers to measure: real `grpc.server`s behind mutual TLS, in this process, that answer as a test wants."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from hermetic.bench.target import Endpoint
from hermetic.bench.throwaway_tls import TlsFiles, make_tls_files

Answer = Callable[[bytes, Any], bytes]
Serve = Callable[[Answer], contextlib.AbstractContextManager[Endpoint]]


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def serve(tls: TlsFiles) -> Serve:
    """A server, in a `with`, whose every method is the given function of request bytes and context."""

    @contextlib.contextmanager
    def serving(answer: Answer) -> Iterator[Endpoint]:
        class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, handler_call_details: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(answer)

        key, certificate, ca = (file.read_bytes() for file in (tls.server_key, tls.server_certificate, tls.ca))
        server = grpc.server(ThreadPoolExecutor(4), handlers=[Handlers()], options=[("grpc.so_reuseport", 0)])
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield Endpoint(f"localhost:{port}", tls.ca, tls.client_certificate, tls.client_key)
        finally:
            server.stop(None).wait()

    return serving
