"""Where keys lie, wrapped: files in a folder, opened by a key-encryption key (KEK) that does not lie beside them.

    folder.py  facts_key.py  key_file.py    the files
    rotation.py                             all of them wrapped anew, by another KEK
    kek.py  one_trial.py                    what a KEK is, the ring of those in use, the probe; one that hangs
    opening.py  secret_source.py            the line of the configuration that says which KEK; PINs and tokens
    local_kek.py                            a KEK in this process's secret memory
    pkcs11/                                 a KEK that never leaves an HSM
    openbao/                                a KEK that never leaves OpenBao's (or Vault's) transit engine

Formats, limits, and what goes wrong by which name: docs/spec/key-stores.md.
"""
