"""What a process and all of its children ask of the kernel, by strace: files written, sockets, and every byte sent."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hermetic.enclave.memory_scan import forms

# Everything by which bytes leave a process other than through memory that it maps: what is mapped was opened.
TRACED = (
    "open,openat,openat2,creat,socket,bind,listen,connect,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,"
    "sendmmsg,sendfile,splice,tee,vmsplice,copy_file_range,process_vm_writev,execve"
)
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE")
MAX_SHOWN = 1 << 20  # bytes of one buffer
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$", re.DOTALL)
_BYTES = re.compile(r"(?:\\x[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call; `text` is what strace shows of it, buffers and paths as they are (latin-1)."""

    pid: int
    name: str
    text: str


def is_installed() -> bool:
    return shutil.which("strace") is not None


def start(arguments: Sequence[str | Path], output: Path) -> subprocess.Popen[str]:
    """Start `hermetic ...` under strace, without pyc files."""
    strace = ["strace", "-f", "-qq", "-xx", "-s", str(MAX_SHOWN), "-o", str(output), "-e", f"trace={TRACED}"]
    command = [*strace, "-E", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "hermetic", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    )


class Trace:
    """The calls of one run."""

    def __init__(self, output: Path) -> None:
        self.calls = list(_parse(output))

    def named(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.name in names]

    def opened_for_writing(self) -> set[str]:
        """Paths of files; each was opened or made, or the process tried to."""
        opens = [call for call in self.named("open", "openat", "openat2", "creat") if WRITES.search(_after_path(call))]
        return {call.text.split('"')[1] for call in opens}

    def sightings(self, canaries: Mapping[str, bytes]) -> list[Call]:
        """Calls with one of the canaries in a buffer: raw, in hexadecimal or in base64."""
        wanted = [form.decode("latin-1") for name, canary in canaries.items() for form in forms(name, canary).values()]
        return [call for call in self.calls if any(form in call.text for form in wanted)]


def _parse(output: Path) -> Iterator[Call]:
    for line in output.read_text("ascii").splitlines():
        match = _CALL.match(line)
        if match is not None:
            yield Call(int(match[1]), match[2], _BYTES.sub(_decoded, match[3]))


def _decoded(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("\\x", "")).decode("latin-1")


def _after_path(call: Call) -> str:
    return "O_CREAT" if call.name == "creat" else call.text.rpartition('"')[2]
