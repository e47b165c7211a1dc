"""A real SoftHSM2 with tokens and keys of a test's choice, and a module before it that fails when it is told to."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

MODULES: Final = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
)
TOKENS: Final = ("hermetic", "twins", "twins", "bad keys", "wrong pin", "brittle")
PIN: Final = "54321-pin-of-a-test"
CONFIG: Final = """
directories.tokendir = {folder}
objectstore.backend = file
log.level = ERROR
slots.removable = false
"""
ULONG = ctypes.c_ulong

CLASS, TOKEN, PRIVATE, LABEL, VALUE, KEY_TYPE, ID = 0x0, 0x1, 0x2, 0x3, 0x11, 0x100, 0x102
SENSITIVE, ENCRYPT, DECRYPT, WRAP, VALUE_LEN, EXTRACTABLE = 0x103, 0x104, 0x105, 0x106, 0x161, 0x162
AES_KEY_GEN, AES_KEY_WRAP, AES_GCM = 0x1080, 0x2109, 0x1087
SIGN, VERIFY, EC_PARAMS, EC_EDWARDS_KEY_PAIR_GEN = 0x108, 0x10A, 0x180, 0x1055
ED25519 = b"\x13\x0cedwards25519"
RW_SESSION = 0x4 | 0x2

YES, NO = b"\1", b"\0"


class Attribute(ctypes.Structure):
    _fields_ = (("type", ULONG), ("value", ctypes.c_void_p), ("length", ULONG))


class Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", ULONG), ("parameter", ctypes.c_void_p), ("length", ULONG))


def number(value: int) -> bytes:
    return bytes(ULONG(value))


GOOD_KEY: Final = {
    CLASS: number(4),
    KEY_TYPE: number(0x1F),
    VALUE_LEN: number(32),
    TOKEN: YES,
    PRIVATE: YES,
    SENSITIVE: YES,
    EXTRACTABLE: NO,
    ENCRYPT: YES,
    DECRYPT: YES,
    WRAP: NO,
}


def module() -> Path | None:
    """SoftHSM's library, None where it is not installed."""
    found = [path for path in MODULES if path.exists()]
    return found[0] if found and shutil.which("softhsm2-util") else None


class SoftHsm:
    """SoftHSM in this process. It is initialised once per process, so there is one of these; tokens come first."""

    def __init__(self, folder: Path, tokens: tuple[str, ...]) -> None:
        found = module()
        assert found is not None
        self.module = found
        self.pin_file = folder / "pin"
        self.pin_file.write_text(f"{PIN}\n")
        self.pin_file.chmod(0o600)
        self.config = folder / "softhsm2.conf"
        (folder / "tokens").mkdir()
        self.config.write_text(CONFIG.format(folder=folder / "tokens"))
        self.environment = {**os.environ, "SOFTHSM2_CONF": str(self.config)}
        for token in tokens:
            self.make_token(token)
        os.environ["SOFTHSM2_CONF"] = str(self.config)
        self.library = ctypes.CDLL(str(self.module))
        self.library.C_Initialize(None)

    def make_token(self, label: str) -> None:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "1234567", "--pin", PIN]
        subprocess.run(command, check=True, capture_output=True, env=self.environment, timeout=60)

    def uri(self, token: str, key: str, *, more: str = "", module: Path | None = None, pin: str | None = None) -> str:
        source = pin or f"file:{self.pin_file}"
        return f"pkcs11:token={token};object={key}{more}?module-path={module or self.module}&pin-source={source}"

    def session(self, token: str) -> ULONG:
        """A session that may write, logged in: what whoever has the PIN can do."""
        slots, count = (ULONG * 64)(), ULONG(64)
        assert self.library.C_GetSlotList(1, slots, ctypes.byref(count)) == 0
        for slot in slots[: count.value]:
            info = ctypes.create_string_buffer(208)
            assert self.library.C_GetTokenInfo(ULONG(slot), info) == 0
            if info.raw[:32].decode().rstrip() == token:
                handle = ULONG()
                opened = self.library.C_OpenSession(ULONG(slot), ULONG(RW_SESSION), None, None, ctypes.byref(handle))
                assert opened == 0
                assert self.library.C_Login(handle, ULONG(1), PIN.encode(), ULONG(len(PIN))) in (0, 0x100)
                return handle
        raise AssertionError(token)

    def close(self, session: ULONG) -> None:
        assert self.library.C_CloseSession(session) == 0

    def make_key(self, token: str, label: str, identifier: bytes = b"\1", change: Mapping[int, bytes] = {}) -> None:
        """Generate a key in the token: a good KEK, but for `change`."""
        session = self.session(token)
        values = {**GOOD_KEY, LABEL: label.encode(), ID: identifier, **change}
        template, _kept = attributes(values)
        mechanism, key = Mechanism(AES_KEY_GEN, None, 0), ULONG()
        result = self.library.C_GenerateKey(
            session, ctypes.byref(mechanism), template, ULONG(len(values)), ctypes.byref(key)
        )
        assert result == 0, hex(result)
        self.close(session)

    def make_signing_key(self, token: str, label: str, change: Mapping[int, bytes] = {}, *, shown: bool = True) -> None:
        """Generate an Ed25519 key pair in the token: a good operator's key, but for `change`."""
        session = self.session(token)
        public = {TOKEN: YES, LABEL: label.encode(), ID: b"\1", EC_PARAMS: ED25519, PRIVATE: NO, VERIFY: YES}
        if not shown:
            public[TOKEN] = NO
        private = {TOKEN: YES, PRIVATE: YES, SENSITIVE: YES, EXTRACTABLE: NO, SIGN: YES, LABEL: label.encode(),
                   ID: b"\1", **change}  # fmt: skip
        (of_public, _kept), (of_private, _kept_too) = attributes(public), attributes(private)
        mechanism, one, two = Mechanism(EC_EDWARDS_KEY_PAIR_GEN, None, 0), ULONG(), ULONG()
        result = self.library.C_GenerateKeyPair(
            session, ctypes.byref(mechanism), of_public, ULONG(len(public)), of_private, ULONG(len(private)),
            ctypes.byref(one), ctypes.byref(two),
        )  # fmt: skip
        assert result == 0, hex(result)
        self.close(session)

    def import_key(self, token: str, label: str, value: bytes) -> None:
        """Put a key into the token that was made elsewhere."""
        session = self.session(token)
        values = {**GOOD_KEY, LABEL: label.encode(), ID: b"\1", VALUE: value}
        del values[VALUE_LEN]
        template, _kept = attributes(values)
        assert self.library.C_CreateObject(session, template, ULONG(len(values)), ctypes.byref(ULONG())) == 0
        self.close(session)

    def find(self, session: ULONG, label: str) -> ULONG:
        template, _kept = attributes({LABEL: label.encode()})
        assert self.library.C_FindObjectsInit(session, template, ULONG(1)) == 0
        key, count = ULONG(), ULONG()
        assert self.library.C_FindObjects(session, ctypes.byref(key), ULONG(1), ctypes.byref(count)) == 0
        assert self.library.C_FindObjectsFinal(session) == 0
        assert count.value == 1
        return key

    def destroy_all(self, token: str, label: str) -> None:
        """Destroy every object of a label."""
        session = self.session(token)
        template, _kept = attributes({LABEL: label.encode()})
        found, count = (ULONG * 4)(), ULONG()
        assert self.library.C_FindObjectsInit(session, template, ULONG(1)) == 0
        assert self.library.C_FindObjects(session, found, ULONG(4), ctypes.byref(count)) == 0
        assert self.library.C_FindObjectsFinal(session) == 0
        for one in found[: count.value]:
            assert self.library.C_DestroyObject(session, ULONG(one)) == 0
        self.close(session)

    def log_out(self, token: str) -> None:
        """Have the next session need the PIN again."""
        session = self.session(token)
        assert self.library.C_Logout(session) == 0
        self.close(session)

    def destroy(self, token: str, label: str) -> None:
        session = self.session(token)
        assert self.library.C_DestroyObject(session, self.find(session, label)) == 0
        self.close(session)


def attributes(values: Mapping[int, bytes]) -> tuple[ctypes.Array[Attribute], list[object]]:
    kept = [ctypes.create_string_buffer(value, len(value)) for value in values.values()]
    pairs = zip(values, kept, strict=True)
    return (Attribute * len(values))(*(Attribute(n, ctypes.addressof(b), len(b)) for n, b in pairs)), [*kept]


class BrittleToken:
    """A PKCS #11 module that passes everything on to SoftHSM, and fails as a file tells it to."""

    def __init__(self, folder: Path, hsm: SoftHsm) -> None:
        self.module = folder / "libbrittle.so"
        self._orders = folder / "orders"
        source = Path(__file__).with_name("brittle_token.c")
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f'-DSOFTHSM="{hsm.module}"',
                   f'-DORDERS="{self._orders}"', "-o", str(self.module), str(source), "-ldl"]  # fmt: skip
        subprocess.run(command, check=True, timeout=60)
        self.order("")

    def order(self, what: str) -> None:
        """`""`, "unplugged", "hang", "broken", "pin-locked", "final-try" or "wrong-pin"."""
        draft = self._orders.with_suffix(".new")
        draft.write_text(what)
        draft.rename(self._orders)

    def logins(self) -> int:
        """How often it has refused the PIN."""
        return len(self._orders.with_name("orders.logins").read_text())
