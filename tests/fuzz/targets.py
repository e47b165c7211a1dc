"""What is fuzzed: each a function of bytes that raises where a decoder crashes, or means something it must not.

Errors of ours are answers, not findings. `make fuzz` runs them under atheris, test_corpus.py on what was kept.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from hermetic.attestation.abi import ccel, dcap, dcap_collateral, dice, nvgpu, pck, pem, rim, strict_xml
from hermetic.enclave import batch_frames, control_frames
from hermetic.enclave import messages as border
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.sealed.config_pbtxt import read_config
from hermetic.enclave.sealed.header import parse_unverified_manifest, read_header
from hermetic.errors import BorderError, HermeticError, InvalidRequestError, ModelFormatError, SealedModelError
from hermetic.server import messages as control
from hermetic.server.http2.frames import LARGEST_FRAME
from tests.fuzz import collateral, conversation, evidence, snp, stored
from tests.server import hostile_front
from tests.server.far_side import Pki
from tests.server.reading import Readers

RED: Final = b"RED-CANARY-0123."  # what two tenants send to a hostile worker
BLUE: Final = b"BLUE-CANARY-456."
SEPARATOR: Final = b"\xf0\x9f\x8d\xb0"  # between the messages of one input
TO_WORKER: Final = (
    border.Prepare,
    border.OpenModel,
    border.Attach,
    border.NewLeaseKey,
    border.TakeLease,
    border.Unload,
)
FROM_WORKER: Final = (
    border.Locked, border.Opened, border.Attached, border.LeaseKeyMade, border.LeaseTaken, border.Wiped, border.Failed,
)  # fmt: skip
EVERY_DIRECTION: Final[Sequence[Sequence[type[control_frames.Frame]]]] = (
    TO_WORKER, FROM_WORKER, control.TO_FRONT_END, control.TO_SUPERVISOR, (control.Start,), (control.Listening,),
)  # fmt: skip

Target = Callable[[bytes], None]


class FoundError(AssertionError):
    """A target means something that it must not."""


def requests(data: bytes) -> None:
    """Requests one after the other, each read three times: as protobuf reads them."""
    readers = Readers()
    for message in data.split(SEPARATOR)[:8]:
        for _ in range(3):
            difference = readers.difference(message)
            if difference is not None:
                raise FoundError(difference)


def batches(data: bytes) -> None:
    """Batch frames: refused, or the same when written again."""
    try:
        batch = batch_frames.decode_batch(data)
    except BorderError:
        return
    if batch_frames.encode_batch(*batch) != data:
        raise FoundError(f"batch: {batch}")


def dones(data: bytes) -> None:
    """Done frames: refused, or the same when written again."""
    try:
        done = batch_frames.decode_done(data)
    except BorderError:
        return
    if done.status == batch_frames.STATUS_OK:
        times = (done.input_ns, done.infer_ns, done.output_ns, done.wipe_ns, done.unlocked_bytes)
        again = batch_frames.encode_done(done.buffer, done.sequence, done.outputs, *times)
        if again != data:
            raise FoundError(f"done: {done}")


def frames(data: bytes) -> None:
    """Control frames in every direction: refused, or the same message when written again."""
    for allowed in EVERY_DIRECTION:
        try:
            frame = control_frames.decode_control(data, allowed)
        except BorderError:
            continue
        if control_frames.decode_control(frame.encode(), allowed) != frame:
            raise FoundError(f"frame: {frame}")


def manifests(data: bytes) -> None:
    """Manifests: refused, or canonical."""
    try:
        manifest = Manifest.parse(data)
    except SealedModelError:
        return
    if manifest.encode() != data:
        raise FoundError(f"manifest: {manifest}")


def sealed_headers(data: bytes) -> None:
    """The public part of a sealed file."""
    descriptor = os.memfd_create("sealed")
    try:
        os.write(descriptor, data)
        parse_unverified_manifest(read_header(descriptor))
    except SealedModelError:
        pass
    finally:
        os.close(descriptor)


def configurations(data: bytes) -> None:
    """A model's config.pbtxt."""
    try:
        read_config(data.decode())
    except (UnicodeDecodeError, ModelFormatError, SealedModelError):
        pass
    except HermeticError as error:
        raise FoundError(f"configuration: expected ModelFormatError, got {error!r}") from error


def nvidia_reports(data: bytes) -> None:
    """A GPU's report and all that is read late; and the firmware identity of a certificate."""
    for parse in (dice.parse_tcb_info, dice.parse_composite_device_id):
        try:
            parse(data)
        except InvalidRequestError:
            continue
    try:
        report = nvgpu.Report.parse(data)
        _ = report.driver_version, report.vbios_version, report.pdis(22), report.pdis(26)
    except InvalidRequestError:
        return
    if report.signed + report.signature != data:
        raise FoundError("report: bytes that nobody signed")


def reference_manifests(data: bytes) -> None:
    """A signed manifest; XML in general, whose canonical form is its own."""
    try:
        root = strict_xml.parse(data)
        written = strict_xml.canonical(root)
        if strict_xml.canonical(strict_xml.parse(written)) != written:
            raise FoundError(f"XML: {written!r}")
        rim.Rim.parse(data)
    except InvalidRequestError:
        return


def dcap_quotes(data: bytes) -> None:
    """A quote, the chain in it and the extension of its leaf, nothing of it verified."""
    try:
        quote = dcap.Quote.parse(data)
        if not data.startswith(quote.signed) or not data.endswith(quote.signature.certificates + quote.padding):
            raise FoundError("quote: bytes that are nowhere")
        pck.PckExtension.of(pem.certificates(quote.signature.certificates)[0])
        pck.parse_chain(quote.signature.certificates)
    except InvalidRequestError:
        return


def dcap_collateral_files(data: bytes) -> None:
    """Files of collateral, one after the other."""
    try:
        found = dcap_collateral.parse_files(data.split(SEPARATOR))
    except InvalidRequestError:
        return
    for one in found:
        if one.tcb_info_signed.text.encode() not in data and b"\\" not in data:
            raise FoundError("collateral: signed text that did not come")


def boot_logs(data: bytes) -> None:
    """The event log of a confidential VM, and its replay."""
    try:
        log = ccel.parse_ccel(data)
    except InvalidRequestError:
        return
    if len(ccel.replay_rtmrs(log)) != len(range(4)):
        raise FoundError("CCEL: registers that do not exist")


def connections(data: bytes) -> None:
    """What a client sends on its connection, a read each up to the next separator."""
    said = conversation.converse([piece for piece in data.split(SEPARATOR)[:16] if piece])
    wrong = conversation.fault(said, LARGEST_FRAME)
    if wrong is not None:
        raise FoundError(wrong)


def workers(data: bytes) -> None:
    """What a worker says and writes, against a front end's application: another model's callers do not notice.

    The messages of one input are frames as they are; after "=" the tensors of an answer to a batch that runs, after "!"
    what is written over all of the shared memory before the next.
    """
    front = hostile_front.Front(_pki())
    try:
        neighbour = front.serve(hostile_front.NEIGHBOUR, hostile=False)
        worker = front.serve(hostile_front.VICTIM)
        for message in data.split(SEPARATOR)[:4]:
            if not front.links_of(hostile_front.VICTIM.name):
                worker.close()
                worker = front.serve(hostile_front.VICTIM)
            _attack(front, worker, message)
            if not front.serves(neighbour):
                raise FoundError("workers: another model is not served")
    finally:
        front.close()


def _attack(front: "hostile_front.Front", worker: "hostile_front.Worker", message: bytes) -> None:
    red = front.ask("red", hostile_front.request(worker.ready.description.name, RED))
    front.turn()
    worker.read()
    if message[:1] == b"!":
        size = len(worker.memory)
        worker.memory[:] = (message[1:] * (size // max(1, len(message) - 1) + 1))[:size].ljust(size, b"!")
    elif message[:1] == b"=" and worker.batches:
        batch = worker.batches[0]
        worker.echo(batch, write=False)
        head = batch_frames.encode_done(batch.buffer, batch.sequence, [], 1, 1, 1)
        worker.send(head[:2] + message[1:3].ljust(2, b"\0") + head[4:] + message[3:])
    else:
        worker.send(message)
    front.turn()
    blue = front.ask("blue", hostile_front.request(worker.ready.description.name, BLUE))
    front.turn()
    worker.read()
    for batch in list(worker.batches):
        worker.answer(batch)
    front.turn()
    for caller, other in ((red, BLUE), (blue, RED)):
        if any(other in reply.SerializeToString() for reply in caller.replies()):
            raise FoundError("workers: one tenant's bytes in another's answer")


@cache
def _pki() -> Pki:
    return Pki()


TARGETS: Final[dict[str, Target]] = {
    "requests": requests,
    "batches": batches,
    "dones": dones,
    "frames": frames,
    "manifests": manifests,
    "sealed-headers": sealed_headers,
    "configurations": configurations,
    "nvidia-reports": nvidia_reports,
    "reference-manifests": reference_manifests,
    "dcap-quotes": dcap_quotes,
    "dcap-collateral": dcap_collateral_files,
    "boot-logs": boot_logs,
    "connections": connections,
    "workers": workers,
    **collateral.TARGETS,
    **evidence.TARGETS,
    **snp.TARGETS,
    **stored.TARGETS,
}
