"""The functions of a PKCS #11 module that are used here, by ctypes (PKCS #11 2.40, pkcs11t.h and pkcs11f.h).

Written on ctypes rather than on a package, so that C_Decrypt writes into memory of our own and a PIN is read from it:
the packages take and return immutable bytes (docs/adr/0204). Only C_GetFunctionList is looked up by name, the rest is
in its table. A module is loaded and initialised once per process, and never finalised: others may use it.
"""

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from hermetic.errors import ConfigurationError, KeyStoreUnavailableError

ULONG: TypeAlias = ctypes.c_ulong

OK: Final = 0x0
GENERAL_ERROR: Final = 0x5
FUNCTION_FAILED: Final = 0x6
ENCRYPTED_DATA_INVALID: Final = 0x40
ENCRYPTED_DATA_LEN_RANGE: Final = 0x41
PIN_INCORRECT: Final = 0xA0
PIN_LOCKED: Final = 0xA4
USER_ALREADY_LOGGED_IN: Final = 0x100
ALREADY_INITIALIZED: Final = 0x191

NAMES: Final[Mapping[int, str]] = {
    0x02: "CKR_HOST_MEMORY",
    0x03: "CKR_SLOT_ID_INVALID",
    0x05: "CKR_GENERAL_ERROR",
    0x06: "CKR_FUNCTION_FAILED",
    0x07: "CKR_ARGUMENTS_BAD",
    0x30: "CKR_DEVICE_ERROR",
    0x31: "CKR_DEVICE_MEMORY",
    0x32: "CKR_DEVICE_REMOVED",
    0x40: "CKR_ENCRYPTED_DATA_INVALID",
    0x41: "CKR_ENCRYPTED_DATA_LEN_RANGE",
    0x60: "CKR_KEY_HANDLE_INVALID",
    0x68: "CKR_KEY_FUNCTION_NOT_PERMITTED",
    0x70: "CKR_MECHANISM_INVALID",
    0x71: "CKR_MECHANISM_PARAM_INVALID",
    0x82: "CKR_OBJECT_HANDLE_INVALID",
    0x90: "CKR_OPERATION_ACTIVE",
    0xA0: "CKR_PIN_INCORRECT",
    0xA2: "CKR_PIN_LEN_RANGE",
    0xA3: "CKR_PIN_EXPIRED",
    0xA4: "CKR_PIN_LOCKED",
    0xB0: "CKR_SESSION_CLOSED",
    0xB1: "CKR_SESSION_COUNT",
    0xB3: "CKR_SESSION_HANDLE_INVALID",
    0xE0: "CKR_TOKEN_NOT_PRESENT",
    0xE1: "CKR_TOKEN_NOT_RECOGNIZED",
    0x101: "CKR_USER_NOT_LOGGED_IN",
    0x102: "CKR_USER_PIN_NOT_INITIALIZED",
    0x150: "CKR_BUFFER_TOO_SMALL",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
}
"""Return values that an operator may meet, as the standard calls them."""

SERIAL_SESSION: Final = 0x4
USER: Final = 1
OS_LOCKING_OK: Final = 0x2
AES_GCM: Final = 0x1087
EDDSA: Final = 0x1057
UNAVAILABLE_INFORMATION: Final = ULONG(-1).value

# Where a function's pointer stands in CK_FUNCTION_LIST, counted from 0 after the version.
INDEX: Final[Mapping[str, int]] = {
    "C_Initialize": 0,
    "C_GetSlotList": 4,
    "C_GetTokenInfo": 6,
    "C_OpenSession": 12,
    "C_CloseSession": 13,
    "C_Login": 18,
    "C_GetAttributeValue": 24,
    "C_FindObjectsInit": 26,
    "C_FindObjects": 27,
    "C_FindObjectsFinal": 28,
    "C_EncryptInit": 29,
    "C_Encrypt": 30,
    "C_DecryptInit": 33,
    "C_Decrypt": 34,
    "C_SignInit": 42,
    "C_Sign": 43,
}


class Attribute(ctypes.Structure):
    """CK_ATTRIBUTE."""

    _fields_ = (("type", ULONG), ("value", ctypes.c_void_p), ("length", ULONG))


class Mechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (("mechanism", ULONG), ("parameter", ctypes.c_void_p), ("length", ULONG))


class GcmParams(ctypes.Structure):
    """CK_GCM_PARAMS."""

    _fields_ = (
        ("iv", ctypes.c_void_p),
        ("iv_length", ULONG),
        ("iv_bits", ULONG),
        ("aad", ctypes.c_void_p),
        ("aad_length", ULONG),
        ("tag_bits", ULONG),
    )


class TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO: texts are padded with blanks."""

    _fields_ = (
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", ULONG),
        ("counts", ULONG * 10),
        ("versions", ctypes.c_ubyte * 4),
        ("time", ctypes.c_char * 16),
    )


class _InitializeArguments(ctypes.Structure):
    _fields_ = (("mutexes", ctypes.c_void_p * 4), ("flags", ULONG), ("reserved", ctypes.c_void_p))


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * 68))


class CryptokiError(KeyStoreUnavailableError):
    """A function of the module said no: `code` is its return value, `function` its name."""

    def __init__(self, function: str, code: int) -> None:
        """Name both."""
        self.code: Final = code
        self.function: Final = function
        super().__init__(f"{function}: wanted CKR_OK, got {NAMES.get(code, hex(code))}")


class Cryptoki:
    """One module. Its functions take ctypes values; `call` raises `CryptokiError` unless one says CKR_OK."""

    def __init__(self, path: Path) -> None:
        """Load and initialise the module; raises `ConfigurationError` or `CryptokiError`."""
        try:
            self._library: Final = ctypes.CDLL(str(path))
            get = self._library.C_GetFunctionList
        except (OSError, AttributeError) as error:
            raise ConfigurationError(f"expected a PKCS #11 module in {path}, got {error}") from error
        table = ctypes.POINTER(_FunctionList)()
        code = get(ctypes.byref(table))
        if code != OK:
            raise CryptokiError("C_GetFunctionList", code)
        self._functions: Final = table.contents.functions
        # One call at a time, whatever a module says of its locks: SoftHSM 2.6.1 says that threads may share it, and two
        # that decrypt at once on a busy machine end the process (11 of 14 runs of a test; none of 16 with this).
        self._turn: Final = threading.Lock()
        # Threads of ours call it, so it must lock; the operating system's locks will do.
        arguments = _InitializeArguments(flags=OS_LOCKING_OK)
        self.call("C_Initialize", ctypes.byref(arguments), allowed=(ALREADY_INITIALIZED,))

    def call(self, name: str, *arguments: object, allowed: tuple[int, ...] = ()) -> int:
        """Call the function; returns its value, which is CKR_OK or one of `allowed`."""
        function = ctypes.CFUNCTYPE(ULONG)(self._functions[INDEX[name]])  # lets the interpreter's lock go
        with self._turn:
            code = int(function(*arguments))
        if code != OK and code not in allowed:
            raise CryptokiError(name, code)
        return code


def address(buffer: memoryview | bytearray) -> ctypes.c_void_p:
    """Where a writable buffer lies; its owner keeps it while this is used."""
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(buffer) else None)
