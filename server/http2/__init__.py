"""gRPC over HTTP/2 over mutual TLS 1.3, on one thread: the transport of every front end. docs/spec/grpc-over-http2.md.

server.py       the loop: sockets, timers, limits on connections
connection.py   one connection: frames in, calls begun and ended (RFC 9113)
outgoing.py     one connection's way out: flow control, fairness between its calls
call.py         one RPC, as the application sees it
messages.py     messages put together from DATA frames
heads.py        header blocks in (RFC 7541), read as the head of a gRPC request
answers.py      header blocks out
tls.py          TLS, from and to memory
frames.py       the numbers of RFC 9113
"""
