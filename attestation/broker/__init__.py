"""The key broker: releases a model key only to an attested worker, and writes down every decision before it acts.

The way of a request (docs/spec/key-broker.md):

    listener.py  ->  app.py, admin_app.py  ->  broker.py, admin.py
    sessions.py  protocol.py                   what a guest sends, and the table of its nonces
    verification.py  token.py                  genuine? then an EAR token
    release.py  floors.py                      acceptable? decided at GET resource
    key_store.py  file_key_store.py  kek.py    where keys lie, wrapped
    jwe.py  key_buffer.py                      the only moments of a key in the clear
    journal.py                                 each decision, durable before the act

Nothing in server/ or enclave/ imports this package.
"""
