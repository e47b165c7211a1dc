"""A KEK that never leaves a PKCS #11 token (docs/spec/key-stores.md, sections 2 and 3).

    uri.py        which token, which key, which module: RFC 7512
    cryptoki.py   the functions of the module that are used, by ctypes: they write into our own secret memory
    session.py    a session that is logged in, and the key, found and judged
    calls.py      calls that may hang, bounded in time and number
    kek.py        the KEK

Why not by a package: docs/adr/0204.
"""
