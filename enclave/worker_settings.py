"""How a worker is started: what the supervisor decides of one, and the first frame that tells the worker of it."""

from dataclasses import dataclass

from hermetic.attestation.hybrid_key import KeyWrap
from hermetic.enclave.gpus import GpuOrders
from hermetic.enclave.isolation.limits import threads_of_worker
from hermetic.enclave.isolation.profiles import PROFILES, WorkerProfile
from hermetic.enclave.isolation.properties import PROPERTIES
from hermetic.enclave.messages import PREPACK_LIMIT_DEFAULT, Prepare


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker is started.

    `publishers` is the text of the trusted publishers' list. `threads` are the runtime's. `memory_limit_bytes` bounds
    what the worker maps beyond its libraries: model, shared memory and everything else. Where the host lets us, it is
    put into a control group of its own, which bounds what is resident. `waived` may name other
    waivers too; only those of isolation properties reach the worker. Where the supervisor is root, each worker gets a
    uid of its own, from `uid` on. `cores` are those it may run on (none: any); it cannot change
    them. `draft` opens models without known answers, to compute them. ONNX weights up to
    `prepack_limit_bytes` in all are packed: two to three times as quick for batches through large matrices, and a
    second copy of them in memory. `lease_key` is that of a broker that offers leases: it opens nothing without one.
    `gpu`: with a profile on a GPU, which one: it is shown no other.
    """

    profile: WorkerProfile
    publishers: str
    threads: int
    memory_limit_bytes: int
    waived: tuple[str, ...]
    uid: int
    gid: int
    spinning: bool = False
    cores: tuple[int, ...] = ()
    draft: bool = False
    lease_key: str = ""
    key_wrap: KeyWrap = "any"
    prepack_limit_bytes: int = PREPACK_LIMIT_DEFAULT
    gpu: GpuOrders | None = None

    @property
    def resident_bytes(self) -> int:
        """What the worker may have in memory: what it maps, and the runtime that its profile brings."""
        return self.memory_limit_bytes + PROFILES[self.profile].resident_bytes

    @property
    def tasks(self) -> int:
        """How many threads the worker may have."""
        return threads_of_worker(self.threads, PROFILES[self.profile].library_threads)

    def prepare(self, uid: int) -> Prepare:
        """Return what a worker that runs as `uid` is told first."""
        return Prepare(
            profile=self.profile,
            publishers=self.publishers,
            threads=self.threads,
            memory_limit_bytes=self.memory_limit_bytes,
            waived=tuple(name for name in self.waived if name in PROPERTIES),
            uid=uid,
            gid=self.gid,
            draft=self.draft,
            lease_key=self.lease_key,
            key_wrap=self.key_wrap,
            spinning=self.spinning,
            prepack_limit_bytes=self.prepack_limit_bytes,
            gpu=self.gpu,
        )
