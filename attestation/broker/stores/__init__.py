"""Where keys lie, wrapped: files in a folder, opened by a key-encryption key that does not lie beside them.

folder.py  key_file.py     the files
local_kek.py               a KEK that this process reads
"""
