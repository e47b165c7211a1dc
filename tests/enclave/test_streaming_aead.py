"""Our payload is Tink's: PyPI `tink` opens what we make, and we open what it makes."""

import hashlib
import io
import json
import struct
from pathlib import Path

import pytest
import tink
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from hermetic.attestation.key_memory import KeyMemory
from hermetic.enclave import streaming_aead as ours
from hermetic.enclave.sealed.refusals import Refusal, refusal_of
from hermetic.errors import SealedModelError

VECTORS = Path(__file__).parents[1] / "vectors" / "sealed-model"
PAYLOADS = sorted((VECTORS / "payloads").glob("*.json"))
KEY = bytes(range(32))
FIRST, FULL = (1 << 20) - 56, (1 << 20) - 16
BORDERS = [1, 15, 16, 17, FIRST - 1, FIRST, FIRST + 1, FIRST + FULL - 1, FIRST + FULL, FIRST + FULL + 1, 3_000_000]


def counting(size: int) -> bytes:
    """The plaintext rule of the vectors (tests/vectors/sealed-model/generate.py)."""
    return b"".join(hashlib.sha256(struct.pack(">Q", at)).digest() for at in range(-(-size // 32)))[:size]


def encrypt(plaintext: bytes, key: bytes, header: bytes, associated: bytes) -> bytes:
    payload = bytearray(ours.ciphertext_bytes(len(plaintext)))
    payload[: ours.HEADER_BYTES] = header
    with ours.SegmentCipher(key, header, associated) as cipher:
        for index in range(ours.segment_count(len(plaintext))):
            at = ours.segment(index, len(plaintext))
            part = plaintext[at.plaintext_offset : at.plaintext_offset + at.plaintext_bytes]
            out = memoryview(payload)[at.ciphertext_offset : at.ciphertext_offset + at.ciphertext_bytes]
            cipher.encrypt_into(at, part, out)
    return bytes(payload)


def decrypt(payload: bytes, size: int, key: bytes, associated: bytes) -> bytes:
    plaintext = bytearray(size)
    assert len(payload) == ours.ciphertext_bytes(size)
    with ours.SegmentCipher(key, payload[: ours.HEADER_BYTES], associated) as cipher:
        for index in reversed(range(ours.segment_count(size))):  # in any order
            at = ours.segment(index, size)
            out = memoryview(plaintext)[at.plaintext_offset : at.plaintext_offset + at.plaintext_bytes]
            cipher.decrypt_into(at, payload[at.ciphertext_offset : at.ciphertext_offset + at.ciphertext_bytes], out)
    return bytes(plaintext)


@pytest.fixture(scope="module")
def witness() -> streaming_aead.StreamingAead:
    """Tink, with our key as a raw keyset."""
    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(key_value=KEY)
    key.params.ciphertext_segment_size = 1 << 20
    key.params.derived_key_size = 32
    key.params.hkdf_hash_type = common_pb2.SHA256
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add(status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
    entry.key_data.value = key.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    handle = cleartext_keyset_handle.read(tink.BinaryKeysetReader(keyset.SerializeToString()))
    return handle.primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    """Keeps its content after Tink closes it."""

    content = b""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


@pytest.mark.parametrize("size", BORDERS)
def test_tink_opens_ours(witness: streaming_aead.StreamingAead, size: int) -> None:
    plaintext, associated = counting(size), hashlib.sha256(b"manifest").digest()
    payload = encrypt(plaintext, KEY, ours.new_header(), associated)
    with witness.new_decrypting_stream(io.BytesIO(payload), associated) as stream:
        assert stream.read() == plaintext


@pytest.mark.parametrize("size", BORDERS)
def test_we_open_tinks(witness: streaming_aead.StreamingAead, size: int) -> None:
    plaintext, associated, sink = counting(size), hashlib.sha256(b"manifest").digest(), Kept()
    with witness.new_encrypting_stream(sink, associated) as stream:
        stream.write(plaintext)
    assert decrypt(sink.content, size, KEY, associated) == plaintext


def test_tink_refuses_ours_for_another_manifest(witness: streaming_aead.StreamingAead) -> None:
    payload = encrypt(b"weights", KEY, ours.new_header(), b"a" * 32)
    with (
        pytest.raises(tink.TinkError),
        witness.new_decrypting_stream(io.BytesIO(payload), b"b" * 32) as stream,
    ):
        stream.read()


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_every_payload_vector(path: Path) -> None:
    vector = json.loads(path.read_text())
    size, key, header = vector["plaintext_size"], bytes.fromhex(vector["key"]), bytes.fromhex(vector["header"])
    payload = encrypt(counting(size), key, header, bytes.fromhex(vector["manifest_digest"]))
    assert ours.segment_count(size) == vector["segments"]
    assert len(payload) == vector["payload_size"]
    assert hashlib.sha256(payload).hexdigest() == vector["payload_sha256"]
    assert ours.key_check(key, header).hex() == vector["key_check"]


def test_there_are_payload_vectors() -> None:
    assert len(PAYLOADS) >= 7


@settings(deadline=None)
@given(st.integers(1, 1 << 40))
def test_segments_tile_payload_and_plaintext(size: int) -> None:
    last = ours.segment_count(size) - 1
    for index in {0, 1, last // 2, last - 1, last} & set(range(last + 1)):
        at = ours.segment(index, size)
        assert at.last == (index == last)
        assert at.plaintext_bytes > 0
        assert at.ciphertext_bytes == at.plaintext_bytes + 16
        assert (
            ours.segment_at(at.plaintext_offset)
            == ours.segment_at(at.plaintext_offset + at.plaintext_bytes - 1)
            == index
        )
        if not at.last:
            after = ours.segment(index + 1, size)
            assert after.plaintext_offset == at.plaintext_offset + at.plaintext_bytes
            assert after.ciphertext_offset == at.ciphertext_offset + at.ciphertext_bytes == (index + 1) << 20
        else:
            assert at.plaintext_offset + at.plaintext_bytes == size
            assert at.ciphertext_offset + at.ciphertext_bytes == ours.ciphertext_bytes(size)


@pytest.mark.parametrize("change", ["index", "last"])
def test_a_segment_opens_only_in_its_place(change: str) -> None:
    header = ours.new_header()
    with ours.SegmentCipher(KEY, header, b"") as cipher:
        here = ours.segment(1, 2 * (1 << 20))
        out = bytearray(here.ciphertext_bytes)
        cipher.encrypt_into(here, bytes(here.plaintext_bytes), out)
        elsewhere = here._replace(index=2) if change == "index" else here._replace(last=not here.last)
        with pytest.raises(SealedModelError, match=f"segment {elsewhere.index}") as caught:
            cipher.decrypt_into(elsewhere, out, bytearray(here.plaintext_bytes))
    assert refusal_of(caught.value) == Refusal.SEGMENT_CHANGED


def test_a_wiped_cipher_cannot_be_used() -> None:
    memory = KeyMemory(32)
    cipher = ours.SegmentCipher(KEY, ours.new_header(), b"", memory)
    assert bytes(memory.view) != bytes(32)
    cipher.wipe()
    assert bytes(memory.view) == bytes(32)
    with pytest.raises(ValueError, match="wiped"):
        cipher.encrypt_into(ours.segment(0, 1), b"x", bytearray(17))


def test_headers_are_never_the_same() -> None:
    headers = {ours.new_header() for _ in range(50)}
    assert len(headers) == 50
    assert {len(header) for header in headers} == {40}
    assert {header[0] for header in headers} == {40}
