"""The key broker: releases a model key only to an attested worker, and writes down every decision before it acts.

The way of a request (docs/spec/key-broker.md):

    config.py  build.py                        a configuration, and the broker out of it
    listener.py  tls.py                        sockets, peer certificates
    application.py  http.py  app.py  admin_app.py         paths, callers, handlers, failures
    steps.py  workers.py                       a request up to each decision, and the threads for whatever waits
    protocol.py  sessions.py  rates.py         what a guest sends, its nonce, how often
    broker.py  verification.py  token.py       genuine? then an EAR token
    release.py  floors.py                      acceptable? decided at GET resource
    serving.py  serving_ca.py  ak.py           certificates for serving keys and attestation keys
    governed.py  configured.py                 whose policies and keys count: operators', or the configuration's
    signed_configuration.py                    the parts of the configuration that operators sign for
    governance_desk.py  initial.py  record.py  changes handed in; the first operators; who changed what
    admin.py  admin_tokens.py                  what the admin's tokens may do
    key_store.py  stores/                      where keys lie, wrapped, and what opens them
    jwe.py  ../key_memory.py                   the only moments of a key in the clear
    journal.py  recorded.py                    each decision, durable before the act, and read back

Nothing in server/ or enclave/ imports this package.
"""
