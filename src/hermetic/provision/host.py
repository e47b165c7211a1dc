"""What this host offers, and what each missing piece costs. Nothing is changed; nothing is asked of a network.

Isolation is not guessed from version numbers: a throw-away process is locked down for real, once as a worker and once
as a front end, and says what held. Paths are below a root that can be given, so that tests show a host that they made.
"""

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hermetic import compiled
from hermetic.attestation import key_memory
from hermetic.enclave import zero_on_free
from hermetic.enclave.gpus import Gpu
from hermetic.enclave.isolation import cgroup, landlock
from hermetic.enclave.isolation.nvidia_ioctls import REQUESTS
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.zero_on_free import Zeroing
from hermetic.errors import IsolationError
from hermetic.server.gpu_facts import known_gpus

__all__ = ["Finding", "State", "examine", "lacking_properties", "software_tpm", "zeroing_here"]

State = Literal["good", "weak", "missing"]
Kind = Literal["worker", "front end"]
KINDS: Final[tuple[Kind, ...]] = ("worker", "front end")

TRIAL_TIMEOUT_S: Final = 30
TRIAL_MEMORY: Final = 1 << 30  # bytes
TRIAL_THREADS: Final = 8
GPU_TIMEOUT_S: Final = 15
NVML_PACKAGE: Final = "pynvml"  # what nvidia-ml-py is imported as
MEMLOCK_WANTED: Final = 64 << 20  # bytes: keys and their surroundings, not models

_TRIAL: Final = """
import json, os, sys
from hermetic.enclave import zero_on_free
from hermetic.enclave.isolation import lockdown
from hermetic.enclave.isolation.properties import PROPERTIES
memory_bytes, threads = map(int, sys.argv[2:])
room = lockdown.Room(65534, 65534, memory_bytes, threads, waived=tuple(PROPERTIES))
zeroing = zero_on_free.status()
sys.stdin.read()  # until it is in its control group
if sys.argv[1] == "worker":
    report = lockdown.lock_down_worker(room, "onnx-cpu", zeroing)
else:
    report = lockdown.lock_front_end_after_listening(lockdown.lock_front_end_before_threads(room, 0), zeroing)
sys.stdout.write(report.model_dump_json())
sys.stdout.flush()
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a host has, has half, or lacks; `cost` says what that means, "" where it is good."""

    area: str
    name: str
    state: State
    detail: str
    cost: str = ""


def examine(root: Path = Path("/")) -> list[Finding]:
    """Everything that is known about the host whose file system is `root`; takes a second or two."""
    return [*_tee(root), *_tpm(root), *_gpu(root), *_kernel(), *_isolation(), *_memory(root), *_speed()]


def lacking_properties() -> list[str]:
    """The isolation properties that neither a worker nor a front end can have on this host, sorted."""
    lacking: set[str] = set()
    for kind in KINDS:
        lacking |= set(_trial(kind).waived)
    return sorted(lacking)


def software_tpm() -> bool:
    """Whether a software TPM can be started here: enough for the demo, never for production."""
    return all(shutil.which(program) for program in ("swtpm", "swtpm_setup", "swtpm_localca"))


# Hardware


def _tee(root: Path) -> Iterator[Finding]:
    for kind, device, name in (
        ("snp", "dev/sev-guest", "AMD SEV-SNP guest"),
        ("tdx", "dev/tdx_guest", "Intel TDX guest"),
    ):
        if (root / device).exists():
            yield _reports(root, kind, device, name)
            return
    cost = "whoever has root or the machine can read all memory, models and keys too"
    yield Finding("machine", "confidential VM", "missing", "no /dev/sev-guest, no /dev/tdx_guest", cost)


def _reports(root: Path, kind: str, device: str, name: str) -> Finding:
    """Whether a confidential VM can have reports made: its memory is protected either way."""
    folder = root / "sys/kernel/config/tsm/report"
    if not folder.is_dir():
        cost = f"no evidence of kind {kind} can be made: mount configfs, on Linux 6.7 or later"
        return Finding("machine", name, "weak", f"/{device}, no configfs-tsm", cost)
    if not os.access(folder, os.W_OK):
        cost = "run the server as root: only its supervisor keeps that"
        return Finding("machine", name, "weak", f"/{device}, configfs-tsm is not ours to write", cost)
    return Finding("machine", name, "good", f'/{device}, configfs-tsm: tee = "{kind}" in server.toml')


def _tpm(root: Path) -> Iterator[Finding]:
    device = root / "dev/tpmrm0"
    if not device.exists():
        detail = "no /dev/tpmrm0" + ("; swtpm is installed, which serves the demo" if software_tpm() else "")
        cost = "no evidence of kind tpm can be made here; without another kind no broker releases a key"
        yield Finding("machine", "TPM 2.0", "missing", detail, cost)
    elif not os.access(device, os.R_OK | os.W_OK):
        yield Finding(
            "machine", "TPM 2.0", "weak", "/dev/tpmrm0 is not ours to open", "run as root or in the group tss"
        )
    else:
        yield Finding("machine", "TPM 2.0", "good", "/dev/tpmrm0")
    log = root / "sys/kernel/security/tpm0/binary_bios_measurements"
    ima = root / "sys/kernel/security/ima/ascii_runtime_measurements"
    if log.exists():
        detail = "boot event log" + (", IMA" if ima.exists() else "")
        yield Finding("machine", "measured boot", "good", detail)
    else:
        cost = "no verifier can tell what runs here: default policies refuse it (code_measured)"
        yield Finding("machine", "measured boot", "missing", "no boot event log in securityfs", cost)


def _gpu(root: Path) -> Iterator[Finding]:
    version = root / "proc/driver/nvidia/version"
    if not version.exists():
        yield Finding("machine", "NVIDIA GPU", "missing", "no driver loaded", "models run on the CPU")
        return
    for gpu in known_gpus(root):
        yield Finding("machine", f"cuda:{gpu.label}", "good", _described(gpu))
    yield _gpu_room(root)
    driver = _first_line(version)
    mode, devtools = _conf_compute("-f"), _conf_compute("-d")
    detail = f"{driver}; confidential computing: {mode}; DEVTOOLS: {devtools}"
    if _is_on(devtools):
        cost = "whoever has the host can debug the GPU, and evidence of GPUs is refused (nvgpu.devtools)"
        yield Finding("machine", "NVIDIA GPU", "weak", detail, cost)
    elif not _is_on(mode):
        cost = "GPU memory is open to the host, and evidence of GPUs is refused (nvgpu.cc)"
        yield Finding("machine", "NVIDIA GPU", "weak", detail, cost)
    elif importlib.util.find_spec(NVML_PACKAGE) is None:
        yield Finding("machine", "NVIDIA GPU", "weak", detail, "no evidence of GPUs: install nvidia-ml-py (extra gpu)")
    else:
        yield Finding("machine", "NVIDIA GPU", "good", f'{detail}; devices = "nvidia" in server.toml')


def _described(gpu: Gpu) -> str:
    memory = "memory unknown, budgets are not checked" if gpu.memory_bytes is None else f"{gpu.memory_bytes >> 20} MiB"
    return f"{gpu.name or 'NVIDIA GPU'}, {memory}, {', '.join(gpu.nodes)}, {gpu.visible}"


def _gpu_room(root: Path) -> Finding:
    """What a worker on a GPU is locked into: its nodes must be there, and it is wider than on the CPU."""
    profile = PROFILES["onnx-cuda"]
    lacking = [node for node in profile.devices if not (root / node.lstrip("/")).exists()]
    if lacking:
        cost = "no model can be loaded on a GPU: make the nodes with `nvidia-modprobe -c 0 -u`"
        return Finding("machine", "room on a GPU", "missing", f"no {', '.join(lacking)}", cost)
    cost = (
        f"wider than on the CPU: it reads its libraries' folders and {len(profile.reads)} files of the machine, maps "
        f"code, and makes {len(REQUESTS)} requests of the driver (docs/escape-matrix.md)"
    )
    return Finding("machine", "room on a GPU", "weak", f"{', '.join(profile.devices)}, and each worker's own", cost)


def _is_on(mode: str) -> bool:
    """Whether nvidia-smi's last line says so: `CC status: ON`."""
    return mode.rpartition(":")[2].strip().upper() == "ON"


def _conf_compute(option: str) -> str:
    """What the driver says of confidential computing (`-f`) or DEVTOOLS (`-d`); "unknown" where it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown (no nvidia-smi)"
    command = [program, "conf-compute", option]
    try:
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=GPU_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return lines[-1] if answer.returncode == 0 and lines else "unknown"


# Isolation and memory


def _kernel() -> Iterator[Finding]:
    try:
        abi = landlock.abi()
    except OSError as error:
        yield Finding("kernel", "Landlock", "missing", error.strerror or str(error), "one layer fewer, see below")
    else:
        wanted = max(landlock.SINCE.values())
        old = abi < wanted
        cost = f"not all of it: scopes came with ABI {wanted}" if old else ""
        yield Finding("kernel", "Landlock", "weak" if old else "good", f"ABI {abi}", cost)
    yield _cgroup()


def _cgroup() -> Finding:
    try:
        version = cgroup.delegation()
    except OSError as error:
        cost = "workers bound the memory that they map, nothing bounds what is resident; systemd: Delegate=yes"
        return Finding("kernel", "cgroup", "weak", error.strerror or str(error), cost)
    return Finding("kernel", "cgroup", "good", f"{version}: each worker gets one of its own")


def _isolation() -> Iterator[Finding]:
    for kind in KINDS:
        try:
            report = _trial(kind)
        except IsolationError as error:
            yield Finding(kind, "lock-down", "missing", str(error), f"no {kind} starts here")
            continue
        for name, layers in report.properties.items():
            yield Finding(kind, name, "good", ", ".join(layers))
        for lost in report.lost:
            yield Finding(kind, lost.layer, "weak", lost.reason, lost.cost)
        yield Finding(kind, "memory", "good", "; ".join(report.memory_bounds) or "see bounded-memory")
        for name in report.waived:
            cost = f"no {kind} starts here unless the property is waived by name, which evidence then says"
            yield Finding(kind, name, "missing", "no layer of this host gives it", cost)


def _trial(kind: Kind) -> LockdownReport:
    """The report of a throw-away process that locked itself down as `kind`; raises `IsolationError` where it died."""
    environment = {**_search_path(), **zero_on_free.environment()}
    command = [sys.executable, "-c", _TRIAL, kind, str(TRIAL_MEMORY), str(TRIAL_THREADS)]
    pipe = subprocess.PIPE
    cgroup.prepare()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        group = cgroup.around(process.pid, TRIAL_MEMORY, TRIAL_THREADS)
        try:
            output, errors = process.communicate("", timeout=TRIAL_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            if group is not None:
                group.remove()
    if process.returncode != 0:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise IsolationError(f"trial lock-down of a {kind}: wanted exit status 0, got {process.returncode}: {last}")
    return LockdownReport.model_validate_json(output)


def _search_path() -> dict[str, str]:
    """What the trial needs to import this package: nothing, but where Python was pointed elsewhere by hand."""
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}


def _speed() -> Iterator[Finding]:
    requests = "a request costs the front end about a third more"
    yield _compiled(compiled.REQUESTS, "compiled modules", "what every request passes is compiled", requests)
    handshakes = "a handshake costs a broker about a third more"
    yield _compiled(compiled.BROKER, "compiled broker", "what every handshake passes is compiled", handshakes)


def _compiled(part: compiled.Part, name: str, what: str, cost: str) -> Finding:
    why = part.why_not()
    if not why:
        return Finding("speed", name, "good", what)
    return Finding("speed", name, "weak", f"the source runs ({why})", cost)


def _memory(root: Path) -> Iterator[Finding]:
    yield _zero_on_free()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    enough = limit == resource.RLIM_INFINITY or limit >= MEMLOCK_WANTED
    detail = "unlimited" if limit == resource.RLIM_INFINITY else f"at most {limit >> 10} KiB"
    cost = "" if enough else "keys may reach a swap device; systemd: LimitMEMLOCK=infinity"
    yield Finding("memory", "locking", "good" if enough else "weak", detail, cost)
    yield _swap(root)
    yield _key_memory()


def zeroing_here() -> Zeroing:
    """Whether a process started as ours are overwrites what it frees, and by what."""
    program = (
        "import dataclasses, json; from hermetic.enclave import zero_on_free as z; "
        "print(json.dumps(dataclasses.asdict(z.status())))"
    )
    environment = {**_search_path(), **zero_on_free.environment()}
    result = subprocess.run(
        [*zero_on_free.interpreter(), "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=TRIAL_TIMEOUT_S,
        env=environment,
    )
    return Zeroing(**json.loads(result.stdout))


def _zero_on_free() -> Finding:
    found = zeroing_here()
    detail = f"{found.state}, by {found.by}"
    if found.state != "enforced":
        cost = f"freed memory keeps what it held until it is used again ({found.why})"
        return Finding("memory", "zero on free", "weak", detail, cost)
    if found.by.startswith(zero_on_free.PRELOAD):
        return Finding("memory", "zero on free", "good", detail)
    cost = f"up to 8 bytes at the end of a freed block stay, and it takes more time ({found.why})"
    return Finding("memory", "zero on free", "weak", detail, cost)


def _swap(root: Path) -> Finding:
    devices = _lines(root / "proc/swaps")[1:]
    if not devices:
        return Finding("memory", "swap", "good", "none")
    names = ", ".join(line.split()[0] for line in devices)
    return Finding("memory", "swap", "weak", names, "plaintext models can be written to it: turn it off, or encrypt it")


def _key_memory() -> Finding:
    """What keys lie in here, tried as a worker and the broker try it."""
    kind = key_memory.probe()
    if kind == "secret":
        return Finding("memory", "secret memory", "good", "memfd_secret: keys lie where the kernel cannot read them")
    cost = "root can read keys in the memory of their process"
    if kind == "unlocked":
        cost += ", and they may reach a swap device; systemd: LimitMEMLOCK=infinity"
    return Finding("memory", "secret memory", "weak", f"keys lie in {kind} memory", cost)


def _first_line(path: Path) -> str:
    return (_lines(path) or ["unreadable"])[0]


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
