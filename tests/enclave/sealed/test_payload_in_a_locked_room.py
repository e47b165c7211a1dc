"""Opening a sealed file where nothing can be opened or imported any more, and what is left in memory of the key."""

import subprocess
import sys
from pathlib import Path

from hermetic.enclave.sealed.writer import MemoryFile, SealedKey, seal
from tests.enclave.sealed.test_writer import SIGNER, TRUSTED, facts

ROOM = """
import ctypes, os, socket, sys
from hermetic.enclave import sealing
from hermetic.enclave.publishers import TrustedPublishers

fd, memory, key_fd = (int(argument) for argument in sys.argv[1:4])
trusted = TrustedPublishers.loads(sys.argv[4])
key = bytearray(32)
with open(key_fd, "rb", buffering=0) as file:
    file.readinto(key)
needle = bytes(value ^ 0x5A for value in key)  # so that the search holds no copy of what it looks for

FORBIDDEN = {"open", "import", "socket.__new__", "subprocess.Popen", "os.fork", "os.exec", "ctypes.dlopen"}
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)) if event in FORBIDDEN else None)
signed = sealing.read_header(fd)
manifest = sealing.verify_manifest(signed, trusted)
opened = sealing.open_payload(fd, manifest, key, 2, memory_fd=memory)
content = bytes(opened.view("w.bin")[:8])
forbidden = [str(item) for item in seen]

def copies_of_the_key():
    start = bytes(value ^ 0x5A for value in needle[:8])
    hits = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as mem:
        for line in maps.read().splitlines():
            span, mode = line.split()[:2]
            if mode[:2] != "rw" or "[v" in line:
                continue
            low, high = (int(edge, 16) for edge in span.split("-"))
            mem.seek(low)
            data = mem.read(high - low) or b""
            at = data.find(start)
            while at >= 0:
                hits += all(one ^ 0x5A == other for one, other in zip(data[at : at + 32], needle))
                at = data.find(start, at + 1)
    return hits

after = copies_of_the_key()
planted = bytearray(value ^ 0x5A for value in needle)
print(repr((forbidden, content.decode(), any(key), after, copies_of_the_key() > 0, opened.names)))
"""


def test_nothing_is_opened_or_imported_and_the_key_is_gone(tmp_path: Path) -> None:
    keys: list[bytes] = []

    def keep(sealed: SealedKey) -> None:
        keys.append(bytes(sealed.key))

    target = tmp_path / "m"
    seal(
        target,
        facts(),
        [MemoryFile("model.onnx", b"g"), MemoryFile("w.bin", b"weights!" * 400_000)],
        SIGNER,
        deliver=keep,
    )
    script = (
        "import os, sys, subprocess\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "memory = os.memfd_create('m', os.MFD_ALLOW_SEALING)\n"
        "key = os.memfd_create('k'); os.write(key, bytes.fromhex(sys.stdin.read())); os.lseek(key, 0, 0)\n"
        "args = [sys.executable, '-c', sys.argv[2], str(fd), str(memory), str(key), sys.argv[3]]\n"
        "sys.exit(subprocess.run(args, pass_fds=(fd, memory, key), check=True).returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, target, ROOM, TRUSTED],
        input=keys[0].hex(),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == repr(([], "weights!", False, 0, True, ("model.onnx", "w.bin")))


PEAK = """
import os, sys
from hermetic.enclave import sealing
from hermetic.enclave.publishers import TrustedPublishers

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

fd = os.open(sys.argv[1], os.O_RDONLY)
manifest = sealing.verify_manifest(sealing.read_header(fd), TrustedPublishers.loads(sys.argv[2]))
before = peak()
opened = sealing.open_payload(fd, manifest, bytearray.fromhex(sys.stdin.read()), 2)
print((peak() - before) * 1024 / manifest.payload.plaintext_size)
"""


def test_opening_takes_the_memory_of_one_model(tmp_path: Path) -> None:
    keys: list[bytes] = []
    weights = MemoryFile("w.bin", bytes(range(256)) * (96 << 12))  # 96 MiB
    files = [MemoryFile("model.onnx", b"g"), weights]
    seal(tmp_path / "m", facts(), files, SIGNER, deliver=lambda s: keys.append(bytes(s.key)), threads=2)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "m"), TRUSTED]
    done = subprocess.run(command, input=keys[0].hex(), check=True, capture_output=True, text=True, timeout=60)
    assert float(done.stdout) < 1.15
