"""gRPC over HTTP/2 over mutual TLS 1.3, on one thread: the transport of every front end. docs/spec/grpc-over-http2.md.

server.py       the loop: sockets, timers, limits on connections
listening.py    the socket that listens
keeping.py      what time does to connections: age, silence, what is not finished
allowance.py    what a client may cost beside its requests
connection.py   one connection: a socket, its TLS, its turns, and its end
reception.py    one connection's way in: what frames mean for its calls (RFC 9113)
control.py      frames that are the whole connection's
outgoing.py     one connection's way out: flow control, fairness between its calls
call.py         one RPC, as the application sees it
deadlines.py    calls by the moment at which their clients stop waiting
messages.py     messages put together from DATA frames
heads.py        header blocks in (RFC 7541), read as the head of a gRPC request
answers.py      header blocks out
tls.py          TLS, from and to memory
frames.py       the numbers of RFC 9113
"""
