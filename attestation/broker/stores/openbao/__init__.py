"""A KEK that never leaves OpenBao's transit engine, or Vault's (docs/spec/key-stores.md, sections 2 and 3).

    uri.py          which server, mount and key; which authority, token and client certificate
    connection.py   one HTTP/1.1 connection over TLS: requests from, and answers into, secret memory
    service.py      requests by name, a few connections used again, refusals by name
    kek.py          the KEK: encrypt, decrypt, and what its key must be
    renewal.py      the token, renewed before it ends

Why not by a package: docs/adr/0206.
"""
