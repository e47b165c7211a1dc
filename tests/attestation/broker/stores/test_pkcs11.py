"""A KEK in a real token (SoftHSM2): it does not leave, wrong keys are refused, a failing token harms nobody."""

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hermetic.attestation.broker.stores.kek import probe
from hermetic.attestation.broker.stores.pkcs11.calls import BoundedCalls
from hermetic.attestation.broker.stores.pkcs11.kek import SESSIONS, Pkcs11Kek, open_pkcs11_kek
from hermetic.attestation.broker.stores.pkcs11.uri import TokenUri
from hermetic.errors import ConfigurationError, KeyStoreError, KeyStoreUnavailableError
from tests.attestation.broker.stores import softhsm
from tests.attestation.broker.stores.softhsm import NO, ULONG, YES, Attribute, BrittleToken, Mechanism, SoftHsm

FACTS = b"facts\n"
SECRET = bytes(range(32))
KEY_UNEXTRACTABLE, ATTRIBUTE_SENSITIVE = 0x6A, 0x11
WAIT_S = 60


@pytest.fixture
def kek(hsm: SoftHsm) -> Iterator[Pkcs11Kek]:
    opened = open_pkcs11_kek(hsm.uri("hermetic", "kek"), None)
    yield opened
    opened.close()


@pytest.fixture
def fragile(hsm: SoftHsm, brittle: BrittleToken) -> Iterator[Pkcs11Kek]:
    """A KEK in the token that fails when it is told to; its calls may take a moment only."""
    uri = TokenUri.parse(hsm.uri("brittle", "kek", module=brittle.module))
    opened = Pkcs11Kek(uri, None, BoundedCalls(1, call_s=WAIT_S, wait_s=WAIT_S))
    yield opened
    brittle.order("")
    opened.close()


def wrapped(kek: Pkcs11Kek) -> bytes:
    return kek.wrap(memoryview(SECRET), FACTS)


def unwrapped(kek: Pkcs11Kek, data: bytes) -> bytes:
    with kek.unwrap(data, FACTS) as memory, memory.view as view:
        return bytes(view)


def value_of(hsm: SoftHsm, session: ULONG, key: ULONG) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(32)
    attribute = Attribute(softhsm.VALUE, ctypes.addressof(buffer), 32)
    return hsm.library.C_GetAttributeValue(session, key, ctypes.byref(attribute), ULONG(1)), buffer.raw


def set_attribute(hsm: SoftHsm, function: str, session: ULONG, key: ULONG) -> int:
    """Make the key, or a copy of it, extractable."""
    values = {softhsm.EXTRACTABLE: YES} if function == "C_SetAttributeValue" else {
        softhsm.EXTRACTABLE: YES, softhsm.SENSITIVE: NO
    }  # fmt: skip
    template, _kept = softhsm.attributes(values)
    more = () if function == "C_SetAttributeValue" else (ctypes.byref(ULONG()),)
    return int(getattr(hsm.library, function)(session, key, template, ULONG(len(values)), *more))


def test_who_has_the_pin_cannot_take_the_kek_out(hsm: SoftHsm, kek: Pkcs11Kek) -> None:
    """The attack, by every way the standard has; a key that may leave shows that the ways work."""
    probe(kek)
    hsm.make_key("hermetic", "leaves", change={softhsm.EXTRACTABLE: YES, softhsm.SENSITIVE: NO, softhsm.WRAP: YES})
    session = hsm.session("hermetic")
    loose, ours = hsm.find(session, "leaves"), hsm.find(session, "kek")
    assert value_of(hsm, session, loose)[0] == 0
    refused, value = value_of(hsm, session, ours)
    assert (refused, value) == (ATTRIBUTE_SENSITIVE, bytes(32))
    assert set_attribute(hsm, "C_SetAttributeValue", session, ours) != 0
    assert set_attribute(hsm, "C_CopyObject", session, ours) != 0
    mechanism, out, length = Mechanism(softhsm.AES_KEY_WRAP, None, 0), ctypes.create_string_buffer(64), ULONG(64)
    results = {
        name: hsm.library.C_WrapKey(session, ctypes.byref(mechanism), loose, key, out, ctypes.byref(length))
        for name, key in (("loose", loose), ("ours", ours))
    }
    assert results == {"loose": 0, "ours": KEY_UNEXTRACTABLE}
    hsm.close(session)
    hsm.destroy("hermetic", "leaves")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({softhsm.SENSITIVE: NO}, "CKA_SENSITIVE: expected true, got false"),
        ({softhsm.EXTRACTABLE: YES}, "CKA_EXTRACTABLE: expected false, got true"),
        ({softhsm.EXTRACTABLE: YES}, "CKA_NEVER_EXTRACTABLE: expected true, got false"),
        ({softhsm.PRIVATE: NO}, "CKA_PRIVATE: expected true, got false"),
        ({softhsm.DECRYPT: NO}, "CKA_DECRYPT: expected true, got false"),
        ({softhsm.ENCRYPT: NO}, "CKA_ENCRYPT: expected true, got false"),
        ({softhsm.VALUE_LEN: softhsm.number(16)}, "CKA_VALUE_LEN: expected 32, got 16"),
    ],
)
def test_a_key_that_may_leave_or_cannot_serve_is_refused(hsm: SoftHsm, change: Mapping[int, bytes], why: str) -> None:
    hsm.make_key("bad keys", "bad", change=change)
    try:
        with pytest.raises(KeyStoreError, match=why):
            open_pkcs11_kek(hsm.uri("bad keys", "bad"), None)
    finally:
        hsm.destroy("bad keys", "bad")


def test_a_key_that_was_made_elsewhere_is_refused(hsm: SoftHsm) -> None:
    """Whoever imported it may have kept it."""
    hsm.import_key("bad keys", "imported", bytes(32))
    with pytest.raises(KeyStoreError, match="CKA_NEVER_EXTRACTABLE: expected true, got false"):
        open_pkcs11_kek(hsm.uri("bad keys", "imported"), None)


def test_no_key_several_keys_no_token_several_tokens(hsm: SoftHsm) -> None:
    with pytest.raises(KeyStoreError, match="expected one secret key with the label 'nobody', got none"):
        open_pkcs11_kek(hsm.uri("hermetic", "nobody"), None)
    for identifier in (b"\1", b"\2"):
        hsm.make_key("bad keys", "twice", identifier)
    with pytest.raises(KeyStoreError, match="got several"):
        open_pkcs11_kek(hsm.uri("bad keys", "twice"), None)
    named = open_pkcs11_kek(hsm.uri("bad keys", "twice", more=";id=%02"), None)
    assert named.identifier == "pkcs11:twice:02"
    named.close()
    with pytest.raises(KeyStoreError, match=r"token nowhere: expected one in \d+ slots, got 0"):
        open_pkcs11_kek(hsm.uri("nowhere", "kek"), None)
    with pytest.raises(KeyStoreError, match=r"token twins: expected one in \d+ slots, got 2"):
        open_pkcs11_kek(hsm.uri("twins", "kek"), None)


def test_no_module(hsm: SoftHsm, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.so", Path(__file__), Path("/lib/x86_64-linux-gnu/libc.so.6")):
        with pytest.raises(ConfigurationError, match="expected a PKCS #11 module"):
            open_pkcs11_kek(hsm.uri("hermetic", "kek", module=path), None)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("pkcs11:object=k?module-path=/m&pin-source=file:/p", "expected token="),
        ("pkcs11:token=t?module-path=/m&pin-source=file:/p", "expected object="),
        ("pkcs11:token=t;object=k?pin-source=file:/p", "expected module-path="),
        ("pkcs11:token=t;object=k?module-path=/m", "expected pin-source="),
        ("pkcs11:token=t;object=k?module-path=m&pin-source=file:/p", "an absolute module-path"),
        ("pkcs11:token=t;object=k?module-path=/m&pin-value=1234", "at most once, got 'pin-value'"),
        ("pkcs11:token=t;token=u;object=k?module-path=/m&pin-source=file:/p", "at most once"),
        ("pkcs11:token=t;object=k;type=private?module-path=/m&pin-source=file:/p", "type=secret-key"),
        ("pkcs11:token=%ff;object=k?module-path=/m&pin-source=file:/p", "UTF-8"),
    ],
)
def test_uris_that_are_refused(uri: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        TokenUri.parse(uri)
    assert "1234" not in str(refused.value)


def test_a_uri() -> None:
    uri = TokenUri.parse("pkcs11:token=a%20b;object=k;id=%01%ff;serial=9?module-path=/m&pin-source=credential:pin")
    assert uri == TokenUri("a b", "k", b"\1\xff", "9", Path("/m"), "credential:pin")


class TestPin:
    @pytest.fixture
    def pin(self, tmp_path: Path) -> Path:
        path = tmp_path / "pin"
        path.write_text(softhsm.PIN)
        path.chmod(0o600)
        return path

    def opens(self, hsm: SoftHsm, source: str, credentials: Path | None = None) -> None:
        open_pkcs11_kek(hsm.uri("hermetic", "kek", pin=source), credentials).close()

    def test_where_it_may_be(self, hsm: SoftHsm, pin: Path) -> None:
        self.opens(hsm, f"file:{pin}")
        self.opens(hsm, "credential:pin", pin.parent)

    def test_where_it_may_not_be(self, hsm: SoftHsm, pin: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(pin)
        os.mkfifo(tmp_path / "fifo", 0o600)
        (tmp_path / "empty").touch(0o600)
        (tmp_path / "long").write_bytes(b"1" * 5000)
        (tmp_path / "long").chmod(0o600)
        sources = {
            f"file:{link}": "cannot read",
            f"file:{tmp_path / 'none'}": "No such file",
            f"file:{tmp_path / 'fifo'}": "regular file",
            f"file:{tmp_path / 'empty'}": "got nothing",
            f"file:{tmp_path / 'long'}": "at most 4096 bytes",
            "file:pin": "expected file:/absolute",
            "env:PIN": "expected file:/absolute",
            "credential:pin": "CREDENTIALS_DIRECTORY",
        }
        for source, why in sources.items():
            with pytest.raises(KeyStoreError, match=why):
                self.opens(hsm, source)
        for mode in (0o640, 0o604, 0o660):
            pin.chmod(mode)
            with pytest.raises(KeyStoreError, match=f"mode {mode:04o}"):
                self.opens(hsm, f"file:{pin}")
        pin.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(pin, 12345, 12345)
            with pytest.raises(KeyStoreError, match="this user's or root's, got uid 12345's"):
                self.opens(hsm, f"file:{pin}")

    def test_a_wrong_one(self, hsm: SoftHsm, pin: Path) -> None:
        hsm.make_key("wrong pin", "kek")
        pin.write_text("wrong")
        with pytest.raises(KeyStoreUnavailableError, match="C_Login: wanted CKR_OK, got CKR_PIN_INCORRECT"):
            open_pkcs11_kek(hsm.uri("wrong pin", "kek", pin=f"file:{pin}"), None)

    @pytest.mark.parametrize(("order", "why"), [("final-try", "its last try left"), ("pin-locked", "locked")])
    def test_a_token_that_would_lock_itself_is_not_asked(
        self, hsm: SoftHsm, brittle: BrittleToken, order: str, why: str
    ) -> None:
        brittle.order(order)
        try:
            with pytest.raises(KeyStoreUnavailableError, match=f"expected a usable PIN, got one .*{why}"):
                open_pkcs11_kek(hsm.uri("brittle", "kek", module=brittle.module), None)
        finally:
            brittle.order("")

    def test_one_that_is_refused_while_serving_is_not_tried_again(
        self, fragile: Pkcs11Kek, brittle: BrittleToken
    ) -> None:
        data = wrapped(fragile)
        brittle.order("wrong-pin")
        with pytest.raises(KeyStoreUnavailableError, match="CKR_PIN_INCORRECT"):
            unwrapped(fragile, data)
        for _ in range(3):
            with pytest.raises(KeyStoreUnavailableError, match="it is not tried again"):
                unwrapped(fragile, data)
        assert brittle.logins() == 1


def test_unplugged_and_plugged_in_again(fragile: Pkcs11Kek, brittle: BrittleToken) -> None:
    data = wrapped(fragile)
    for order in ("unplugged", "broken"):
        brittle.order(order)
        for _ in range(3):
            with pytest.raises(KeyStoreUnavailableError):
                unwrapped(fragile, data)
        brittle.order("")
        assert unwrapped(fragile, data) == SECRET


def test_a_session_that_the_token_forgot_is_opened_anew(hsm: SoftHsm, kek: Pkcs11Kek) -> None:
    data = wrapped(kek)
    for session in kek._idle:
        hsm.close(session.handle)
    assert unwrapped(kek, data) == SECRET


def test_a_token_that_hangs_keeps_nobody_waiting(hsm: SoftHsm, brittle: BrittleToken) -> None:
    uri = TokenUri.parse(hsm.uri("brittle", "kek", module=brittle.module))
    kek = Pkcs11Kek(uri, None, calls := BoundedCalls(1, call_s=WAIT_S, wait_s=WAIT_S))
    data = wrapped(kek)
    calls._call_s, calls._wait_s = 0.2, 0.05
    brittle.order("hang")
    try:
        with pytest.raises(KeyStoreUnavailableError, match="expected an answer within"):
            unwrapped(kek, data)
        with pytest.raises(KeyStoreUnavailableError, match="expected one of 1 sessions to be free"):
            unwrapped(kek, data)
    finally:
        brittle.order("")
    calls._call_s = calls._wait_s = WAIT_S
    assert unwrapped(kek, data) == SECRET  # its place is free once the call has ended
    kek.close()


def test_what_comes_too_late_is_discarded() -> None:
    goes_on, discarded = threading.Event(), threading.Event()
    late: list[str] = []

    def discard(result: str) -> None:
        late.append(result)
        discarded.set()

    def work() -> str:
        goes_on.wait(WAIT_S)
        return "secret"

    calls = BoundedCalls(1, call_s=0.01, wait_s=WAIT_S)
    with pytest.raises(KeyStoreUnavailableError, match="expected an answer"):
        calls.run(work, discard)
    goes_on.set()
    assert discarded.wait(WAIT_S)
    assert late == ["secret"]
    calls._call_s = WAIT_S
    assert calls.run(lambda: "next", discard) == "next"
    assert late == ["secret"]


def test_many_at_once_share_the_sessions(hsm: SoftHsm) -> None:
    calls = BoundedCalls(SESSIONS, call_s=WAIT_S, wait_s=WAIT_S)
    kek = Pkcs11Kek(TokenUri.parse(hsm.uri("hermetic", "kek")), None, calls)
    secrets = [os.urandom(32) for _ in range(24)]

    def back(secret: bytes) -> bytes:
        data = kek.wrap(memoryview(secret), secret)
        with kek.unwrap(data, secret) as memory, memory.view as view:
            return bytes(view)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(back, secrets)) == secrets
    assert 1 <= len(kek._idle) <= SESSIONS
    kek.close()


def test_the_right_name_on_the_wrong_key(hsm: SoftHsm) -> None:
    """The KEK is destroyed while it serves, and another takes its label: what the first wrapped is lost."""
    hsm.make_key("bad keys", "replaced")
    kek = open_pkcs11_kek(hsm.uri("bad keys", "replaced"), None)
    data = wrapped(kek)
    hsm.destroy("bad keys", "replaced")
    with pytest.raises(KeyStoreUnavailableError, match="with the label 'replaced', got none"):
        unwrapped(kek, data)
    hsm.make_key("bad keys", "replaced")
    with pytest.raises(KeyStoreError, match="expected an authentic ciphertext") as refused:
        unwrapped(kek, data)
    assert not isinstance(refused.value, KeyStoreUnavailableError)
    kek.close()
