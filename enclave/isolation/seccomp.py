"""A seccomp filter from a list of rules, in classic BPF, applied to every thread of the process.

A program is data: `assemble` is pure, `apply` makes the system call. What is allowed to whom is profiles.py.
Reading order of the program: architecture, x32, then the rules in their order, then the default action.
"""

import ctypes
import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hermetic.enclave.isolation.kernel import syscall
from hermetic.enclave.isolation.process import refuse_new_privileges
from hermetic.enclave.isolation.syscalls import AUDIT_ARCH, NUMBERS, machine
from hermetic.errors import IsolationError

KILL: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_SET_MODE_FILTER: Final = 1
_FILTER_FLAG_TSYNC: Final = 1
_X32_BIT: Final = 0x40000000
INSTRUCTIONS_LIMIT: Final = 4096  # BPF_MAXINSNS

# struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments (low word first on both machines).
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06


def refuse(code: int = errno.EPERM) -> int:
    """Return the action that makes a call fail with `code` instead of killing: for calls that libraries only try."""
    return _ERRNO | code


@dataclass(frozen=True, slots=True)
class Argument:
    """One condition: the low (or high) 32 bits of argument `index`, masked, equal `value`."""

    index: int
    value: int
    mask: int = 0xFFFFFFFF
    high: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """`action` for a system call. With `any_of`: where all conditions of one alternative hold, else `otherwise`."""

    name: str
    action: int
    any_of: tuple[tuple[Argument, ...], ...] = ()
    otherwise: int = KILL


def assemble(rules: Sequence[Rule], default: int = KILL, architecture: str | None = None) -> bytes:
    """Return the BPF program of `rules` for `architecture` (this machine's if None).

    Names that the architecture lacks are left out. The first rule of a name decides.
    """
    architecture = architecture or machine()
    numbers = NUMBERS[architecture]
    program = [_jump(_EQUAL, AUDIT_ARCH[architecture], 1, 0), _give(KILL), _load(_NR)]
    program.insert(0, _load(_ARCH))
    program += [_jump(_AT_LEAST, _X32_BIT, 0, 1), _give(KILL)]
    for rule in rules:
        if rule.name in numbers:
            body = _body(rule)
            program += [_jump(_EQUAL, numbers[rule.name], 0, len(body)), *body]
    program.append(_give(default))
    return b"".join(program)


def apply(program: bytes) -> None:
    """Put every thread of this process under `program`, for good.

    Raises `OSError` where the kernel has no seccomp, and `IsolationError` where a thread is under a filter of its own:
    the kernel then puts no thread under this one.
    """
    refuse_new_privileges()
    narrow(program)


def narrow(program: bytes) -> None:
    """Put every thread under one more filter, for what the one before allows; raises as `apply`."""
    count = len(program) // 8
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", count, ctypes.addressof(code)), 16)
    failed_thread = syscall("seccomp", _SET_MODE_FILTER, _FILTER_FLAG_TSYNC, header)
    if failed_thread:
        raise IsolationError(f"seccomp: wanted every thread under the filter, got thread {failed_thread} outside")


def _body(rule: Rule) -> list[bytes]:
    if not rule.any_of:
        return [_give(rule.action)]
    body: list[bytes] = []
    for conditions in rule.any_of:
        # Each condition is three instructions; one that fails jumps past the rest and past the action.
        for position, condition in enumerate(conditions):
            left = 3 * (len(conditions) - position - 1) + 1
            offset = _ARGUMENTS + 8 * condition.index + (4 if condition.high else 0)
            body += [_load(offset), _plain(_AND, condition.mask), _jump(_EQUAL, condition.value, 0, left)]
        body.append(_give(rule.action))
    return [*body, _give(rule.otherwise)]


def _plain(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _load(offset: int) -> bytes:
    return _plain(_LOAD, offset)


def _give(action: int) -> bytes:
    return _plain(_RETURN, action)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
