"""The worker process: one model, behind a locked door. Started by supervisor.py as `python -m hermetic.enclave.worker`.

 (1) told what to be; refuses telemetry; checks that freed memory is overwritten
 (2) imports and warms up the runtime: afterwards there is no file to import from
 (3) locks itself down: everything but seccomp while it has one thread; opens the GPU, where it has one, whose driver
     starts threads and loads libraries; then seccomp, for every thread
 (4) makes the attested key pair, tells its public half
 (5) receives the sealed model, the key and the lease; verifies, decrypts, checks; wipes both keys
 (6) loads the model: only now does a runtime see a byte of it; with native code, loses the right to load any
 (7) runs its publisher's warm-ups, and gives its known answers, on the path that serves
 (8) serves front ends until it is told to unload, or its lease is over; wipes, ends

Whatever goes wrong before (8) ends the process with a reason sent to the supervisor. After (3) nothing that a model
prints leaves the room.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from hermetic.attestation.key_memory import KeyMemory
from hermetic.attestation.lease import LeasedModel
from hermetic.enclave import runtimes
from hermetic.enclave.attested_key import KEY_MEMORY_BYTES, AttestedKey
from hermetic.enclave.batch_runner import BatchRunner
from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import Frame, decode_control
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.front_end_channels import FrontEndChannels
from hermetic.enclave.gpu_libraries import library_folders
from hermetic.enclave.gpus import GpuOrders
from hermetic.enclave.isolation.limits import threads_of_worker
from hermetic.enclave.isolation.lockdown import (
    Room,
    end_loading,
    lock_worker_before_threads,
    lock_worker_with_threads,
)
from hermetic.enclave.isolation.process import die_with_parent, make_undumpable
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.known_answer import verify_known_answers
from hermetic.enclave.lease_timer import ENDED_STATUS, LeaseTimer
from hermetic.enclave.manifest import KNOWN_ANSWER_NAME, Manifest
from hermetic.enclave.memory import Memory, open_memory
from hermetic.enclave.messages import (
    Attach,
    Attached,
    Failed,
    LeaseKeyMade,
    LeaseTaken,
    Locked,
    NewLeaseKey,
    Opened,
    OpenModel,
    Prepare,
    TakeLease,
    Unload,
    Wiped,
)
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.model_tensors import model_tensors
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.pulse import Pulse
from hermetic.enclave.runtimes.interface import ModelToLoad, Runtime
from hermetic.enclave.runtimes.interface_on_device import DeviceRuntime
from hermetic.enclave.runtimes.refusals import ModelRefusal, refused
from hermetic.enclave.sealing import OpenedModel, open_payload, read_header, verify_manifest
from hermetic.enclave.streaming_aead import KEY_BYTES
from hermetic.enclave.warm_up import warm_up
from hermetic.enclave.worker_lease import WorkerLease, moments
from hermetic.enclave.zero_on_free import RUNTIME_ENVIRONMENT, give_kept_blocks_back, status
from hermetic.errors import (
    BorderError,
    ConfigurationError,
    HermeticError,
    KnownAnswerError,
    LeaseRefusedError,
    SealedModelError,
)

__all__ = ["main"]

FAILED_TEXT_LIMIT: Final = 2048  # characters of a reason


@dataclass(slots=True)
class _Loaded:
    opened: OpenedModel
    description: ModelDescription
    runner: BatchRunner | DeviceRunner
    front_ends: FrontEndChannels
    memory: Memory


class Worker:
    """The life of one worker process over its control channel."""

    def __init__(self, control: Channel, environment: Mapping[str, str]) -> None:
        self._control = control
        self._environment = environment
        self._program: int | None = None  # memory that native code is run from

    def run(self) -> None:
        """Go through all steps; raises what ends the process early."""
        prepare, (pulse,) = self._receive((Prepare,), descriptors=1)
        if not isinstance(prepare, Prepare):  # the type checker's: only Prepare is allowed
            return
        self._pulse = Pulse(pulse)
        publishers = TrustedPublishers.loads(prepare.publishers)
        self._lease = WorkerLease(prepare.lease_key, LeaseTimer())
        key, sealed_into, private = self._lock(prepare)
        try:
            message, descriptors = self._receive((OpenModel, Unload), descriptors=None)
            loaded = None
            if isinstance(message, OpenModel):
                loaded = self._open(prepare, publishers, key, sealed_into, private, message, descriptors)
        finally:
            key.wipe()
        if loaded is not None:
            try:
                loaded.front_ends.serve(lambda: self._obey(loaded))
                loaded.front_ends.finish()
            finally:
                _wipe(loaded)
            if self._lease.timer.over:
                os._exit(ENDED_STATUS)
        self._send(Wiped())

    def _lock(self, prepare: Prepare) -> tuple[AttestedKey, int, Memory]:
        """Steps (1) to (4); returns the key pair, memory to decrypt the model into, and memory for batches."""
        # (1) The environment.
        wrong = {name: self._environment.get(name) for name in RUNTIME_ENVIRONMENT}
        if wrong != RUNTIME_ENVIRONMENT:
            raise ConfigurationError(f"worker: wanted the environment {dict(RUNTIME_ENVIRONMENT)}, got {wrong}")
        zeroing = status()
        # (2) The runtime.
        runtimes.import_runtimes(prepare.profile)
        # Made now: a locked worker can make no memory that is not bounded.
        sealed_into = os.memfd_create("hermetic-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if PROFILES[prepare.profile].loads_code:
            self._program = os.memfd_create("hermetic-program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        keys = KeyMemory(KEY_MEMORY_BYTES)
        _silence()
        # (3) The lock-down.
        self._layers = layers = lock_worker_before_threads(_room(prepare), prepare.profile)
        private = open_memory(prepare.profile)
        runtimes.open_gpu(prepare.profile)
        report = lock_worker_with_threads(layers, zeroing)
        # (4) The key pair.
        before = moments()
        key = AttestedKey(keys, prepare.key_wrap)
        self._lease.expect(key.public_jwk, before)
        self._lease.timer.wipe = key.wipe
        report = report.model_copy(update={"key_memory": keys.kind})
        self._send(Locked(public_key=key.public_jwk, hybrid_key=key.hybrid_key, report=report))
        return key, sealed_into, private

    def _open(
        self,
        prepare: Prepare,
        publishers: TrustedPublishers,
        key: AttestedKey,
        sealed_into: int,
        private: Memory,
        message: OpenModel,
        descriptors: list[int],
    ) -> _Loaded:
        """Steps (5) to (7)."""
        started = time.monotonic()
        # (5) The sealed model.
        if len(descriptors) != 1:
            raise BorderError(f"OpenModel: wanted 1 descriptor, got {len(descriptors)}")
        unsealing = _Unsealing(publishers, key, prepare, self._lease)
        manifest, opened = unsealing.unseal(descriptors[0], sealed_into, message)
        self._lease.timer.wipe = opened.wipe
        unsealed = time.monotonic()
        try:
            # (6) The runtime.
            description = manifest.description()
            model = replace(_to_load(manifest, opened, prepare), program=self._program)
            runtime, runner = _runner(model, description, private, prepare.gpu)
            if PROFILES[prepare.profile].loads_code:
                end_loading(self._layers)
            loaded = time.monotonic()
            # (7) Warm-ups, then the known answers.
            warm_up(runner, description, opened.view)
            warm = time.monotonic()
            if manifest.known_answer is not None:
                accuracy = None if prepare.gpu is None else prepare.gpu.accuracy
                verify_known_answers(runner, description, manifest, opened.view(KNOWN_ANSWER_NAME), accuracy)
            answered = time.monotonic()
            files = {name: bytearray(opened.view(name)) for name in manifest.configuration.files()}
            if not runtime.holds_views:
                opened.wipe()
        except BaseException as error:
            try:
                private.unload()
            finally:
                opened.wipe()
            if not isinstance(error, Exception) or isinstance(error, HermeticError):
                raise
            # Whatever a model makes a loader raise is its refusal, and final: it would raise that again.
            text = f"wanted a model that can be loaded, got {_without_its_text(error)}"
            raise refused(ModelRefusal.LOADER, text) from None
        gc.collect()
        give_kept_blocks_back()
        self._send(
            Opened(
                description=description,
                unseal_ms=1e3 * (unsealed - started),
                load_ms=1e3 * (loaded - unsealed),
                warm_up_ms=1e3 * (warm - loaded),
                known_answer_ms=1e3 * (answered - warm),
            )
        )
        front_ends = FrontEndChannels(runner, description, self._control, files, self._pulse, self._lease.timer.ended)
        self._lease.timer.cut_off = front_ends.shut
        return _Loaded(opened, description, runner, front_ends, private)

    def _obey(self, loaded: _Loaded) -> bool:
        """Handle one control frame while serving; whether to go on."""
        message, descriptors = self._receive((Attach, Unload, NewLeaseKey, TakeLease), descriptors=None)
        if isinstance(message, NewLeaseKey | TakeLease):
            self._renew(message)
            return True
        if not isinstance(message, Attach):
            return False
        if len(descriptors) != 2:  # noqa: PLR2004 - the data channel and its memory
            raise BorderError(f"Attach: wanted 2 descriptors, got {len(descriptors)}")
        try:
            channel, memory = descriptors
            loaded.front_ends.attach(message.front_end, channel, memory, message.buffers, message.variable_tensor_bytes)
        except HermeticError as error:
            self._send(_failed(error))
        else:
            self._send(Attached(front_end=message.front_end))
        return True

    def _renew(self, message: NewLeaseKey | TakeLease) -> None:
        try:
            if isinstance(message, NewLeaseKey):
                self._send(LeaseKeyMade(public_key=self._lease.new_key()))
            else:
                self._send(LeaseTaken(left_s=self._lease.take(message.lease, message.at_most_ms)))
        except LeaseRefusedError as error:
            self._send(_failed(error))

    def _receive(self, allowed: tuple[type[Frame], ...], descriptors: int | None) -> tuple[Frame, list[int]]:
        frame, received = self._control.receive()
        if descriptors is not None and len(received) != descriptors:
            raise BorderError(f"control frame: wanted {descriptors} descriptors, got {len(received)}")
        return decode_control(frame, allowed), received

    def _send(self, frame: Frame) -> None:
        self._control.send(frame.encode())


@dataclass(frozen=True, slots=True)
class _Unsealing:
    """What a sealed model is opened with."""

    publishers: TrustedPublishers
    key: AttestedKey
    prepare: Prepare
    lease: WorkerLease

    def unseal(self, sealed: int, memory: int, message: OpenModel) -> tuple[Manifest, OpenedModel]:
        """Return the verified model in memory. The key pair is wiped, and both descriptors closed, in any case."""
        key, prepare = self.key, self.prepare
        try:
            manifest = verify_manifest(read_header(sealed), self.publishers)
            self._check(manifest, message)
            digest = message.manifest_digest
            leased = LeasedModel(name=manifest.name, version=manifest.version, manifest_digest=digest)
            self.lease.begin(leased, message.lease, message.at_most_ms)
            secret = key.open(message.jwe)
            if len(secret) != KEY_BYTES:
                raise BorderError(f"model key: wanted {KEY_BYTES} bytes, got {len(secret)}")
            threads = prepare.threads
            return manifest, open_payload(sealed, manifest, secret, threads, memory_fd=memory, key_memory=key.memory)
        finally:
            # The model's key and the derived one too: all lie in the memory of the pair.
            key.wipe()
            os.close(sealed)
            os.close(memory)

    def _check(self, manifest: Manifest, message: OpenModel) -> None:
        digest, profile = manifest.digest().hex(), self.prepare.profile
        if digest != message.manifest_digest:
            raise SealedModelError(f"sealed model: wanted the manifest {message.manifest_digest}, got {digest}")
        if not runtimes.runs(profile, manifest.format):
            raise ConfigurationError(
                f"model {manifest.name}: wanted a format that the profile {profile} runs, got {manifest.format}"
            )
        if manifest.known_answer is None and not self.prepare.draft:
            raise KnownAnswerError(f"model {manifest.name}: wanted known answers sealed with it, got none")


def _room(prepare: Prepare) -> Room:
    profile = PROFILES[prepare.profile]
    return Room(
        uid=prepare.uid,
        gid=prepare.gid,
        memory_bytes=prepare.memory_limit_bytes,
        threads=threads_of_worker(prepare.threads, profile.library_threads),
        waived=prepare.waived,
        devices=() if prepare.gpu is None else prepare.gpu.gpu.nodes,
        libraries=library_folders() if profile.devices else (),
    )


def _to_load(manifest: Manifest, opened: OpenedModel, prepare: Prepare) -> ModelToLoad:
    names = [entry.name for entry in manifest.files if entry.name != KNOWN_ANSWER_NAME]
    inputs, outputs = model_tensors(manifest.configuration, manifest.inputs, manifest.outputs)
    return ModelToLoad(
        format=manifest.format,
        architecture=manifest.architecture,
        files={name: opened.view(name, writable=True) for name in names},
        inputs=tuple(tensor.own for tensor in inputs),
        outputs=tuple(tensor.own for tensor in outputs),
        max_batch_size=manifest.max_batch_size,
        threads=prepare.threads,
        unbatched=frozenset(tensor.own.name for tensor in (*inputs, *outputs) if tensor.whole),
        spinning=prepare.spinning,
        prepack_limit_bytes=prepare.prepack_limit_bytes,
    )


def _runner(
    model: ModelToLoad, description: ModelDescription, memory: Memory, orders: GpuOrders | None
) -> tuple[Runtime | DeviceRuntime, BatchRunner | DeviceRunner]:
    """Return the loaded model and what runs its batches, on the CPU or, where there are orders for one, on a GPU."""
    if orders is None:
        runtime = runtimes.load(model)
        return runtime, BatchRunner(runtime, description, memory)
    if not isinstance(memory, DeviceMemory):
        raise ConfigurationError(f"gpu: wanted memory on a GPU, got {type(memory).__name__}")
    on_gpu = runtimes.load_on_gpu(model, memory, orders)
    return on_gpu, DeviceRunner(on_gpu, description, memory, transfers=orders.transfers)


def _wipe(loaded: _Loaded) -> None:
    try:
        loaded.runner.close()
        loaded.front_ends.wipe_files()
        # What only cycles still hold is freed, and thereby overwritten, before the weights under it are.
        gc.collect()
        loaded.memory.unload()
    finally:
        loaded.opened.wipe()


def _silence() -> None:
    """From here on nothing that the runtime or a model prints is seen by anyone."""
    nowhere = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _failed(error: Exception) -> Failed:
    if isinstance(error, HermeticError):
        return Failed(error=type(error).__name__, text=str(error)[:FAILED_TEXT_LIMIT])
    return Failed(error="HermeticError", text=f"worker: {_without_its_text(error)}")


def _without_its_text(error: Exception) -> str:
    """Return what was raised and where, but not its text, which may quote what it stumbled over."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {os.path.basename(frame.filename)}:{frame.lineno}" for frame in where)  # noqa: PTH119
    return f"{type(error).__name__}{place}"


def main(arguments: list[str]) -> int:
    """Run the worker on the control descriptor `arguments[0]`, for the parent process `arguments[1]`.

    Returns the exit status.
    """
    control = Channel.of_descriptor(int(arguments[0]))
    try:
        die_with_parent(int(arguments[1]))
        make_undumpable()
        Worker(control, dict(os.environ)).run()
    except Exception as error:  # noqa: BLE001 - the process ends here, and says why
        with suppress(BorderError, OSError):
            control.send(_failed(error).encode())
        return 1
    return 0


if __name__ == "__main__":
    # Not sys.exit: interpreter and libraries would tear down with files and calls that they do not have any more.
    os._exit(main(sys.argv[1:]))
