"""Where keys lie, wrapped: files in a folder, opened by a key-encryption key (KEK) that does not lie beside them.

folder.py  facts_key.py  key_file.py    the files (docs/spec/key-stores.md)
kek.py                                  what a KEK is, the ring of those in use, and the probe
opening.py  secret_source.py            the line of the configuration that says which KEK; PINs and tokens
local_kek.py                            a KEK in this process's secret memory
pkcs11/                                 a KEK that never leaves an HSM
openbao/                                a KEK that never leaves OpenBao's (or Vault's) transit engine
"""
