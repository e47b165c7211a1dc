"""Sound inputs of every target, where a corpus starts: python -m tests.fuzz.seeds writes those that are missing."""

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from hermetic.attestation.abi import ccel, dcap, tcg_event_log
from hermetic.attestation.abi.tpm import Alg
from hermetic.enclave import batch_frames
from hermetic.enclave import messages as border
from hermetic.server import messages as control
from tests.fuzz import collateral, evidence, snp, stored
from tests.fuzz.targets import SEPARATOR
from tests.server.calls import infer_request
from tests.server.far_side import description
from tests.server.http2 import wire
from tests.server.wire_data import GROUP, GROUP_END, field, tag, varint

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
CORPUS = Path(__file__).resolve().parents[1] / "corpus"


def requests() -> Iterator[bytes]:
    """One request and its like; typed contents; strings; fields out of order; a group."""
    small = infer_request("echo", (1, 2, 3, 4), request_id="an id").SerializeToString()
    yield small
    yield SEPARATOR.join((small, small.replace(b"an id", b"other")))
    typed = infer_request("echo", (1, 2, 3, 4))
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend((1, 2, 3, 4))
    yield typed.SerializeToString()
    strings = field(5, field(1, b"A") + field(2, b"INT8") + field(3, b"\1\3"))
    strings += field(5, field(1, b"B") + field(2, b"BYTES") + field(3, b"\1\1"))
    yield field(7, b"abc") + strings + field(1, b"two") + field(7, b"\1\0\0\0z") + field(6, field(1, b"A"))
    flags = field(1, b"flags") + field(5, field(1, b"F") + field(2, b"BOOL") + field(3, b"\2")) + field(7, b"\1\2")
    yield flags
    yield flags + tag(9, GROUP) + tag(9, GROUP_END)
    yield flags + field(4, field(1, b"priority") + field(2, b"\x08\1"))
    yield tag(1, 2, 1) + varint(4, 2) + b"none"


def batches() -> Iterator[bytes]:
    """With and without tensors."""
    yield batch_frames.encode_batch(1, 2, [])
    yield batch_frames.encode_batch(1, 2, [], 2**64 - 1)
    yield batch_frames.encode_batch(1, 2, [batch_frames.Tensor(16, (1, 4)), batch_frames.Tensor(0, (-1,))])


def dones() -> Iterator[bytes]:
    """Answered, and not."""
    yield batch_frames.encode_done(1, 2, [batch_frames.Tensor(16, (1, 4))], 3, 4, 5)
    yield batch_frames.encode_done(1, 2, [batch_frames.Tensor(16, (1, 4))], 3, 4, 5, 6, 7)
    yield batch_frames.encode_not_done(1, 2, batch_frames.STATUS_REFUSED, "no such token")


def frames() -> Iterator[bytes]:
    """Some of each direction."""
    yield control.ModelReady(
        description=description(), instance=0, buffers=2, batches_in_flight=1, variable_tensor_bytes=1,
        max_queue_delay_us=0, requests_waiting=1,
    ).encode()  # fmt: skip
    yield control.Drain(grace_s=1.0).encode()
    yield control.Records(records=('{"event":"x"}',)).encode()
    yield control.RecordsWritten(count=1).encode()
    yield border.OpenModel(jwe=b"jwe", manifest_digest="ab" * 32).encode()
    yield border.Attach(front_end=1, buffers=2, variable_tensor_bytes=1).encode()
    yield border.Failed(error="ModelFormatError", text="no").encode()


def manifests() -> Iterator[bytes]:
    """Those of the sealed files among the vectors."""
    for sealed in sealed_headers():
        start = sealed.find(b"{")
        end = json.JSONDecoder().raw_decode(sealed[start:].decode(errors="replace"))[1]
        yield sealed[start : start + end]


def sealed_headers() -> Iterator[bytes]:
    """The first bytes of small sealed files."""
    for path in sorted((VECTORS / "sealed-model" / "files").glob("*.sealed"))[:6]:
        yield path.read_bytes()[:4096]


def configurations() -> Iterator[bytes]:
    """The vectors of the model configuration."""
    for path in sorted((VECTORS / "model-configuration").glob("*/*.pbtxt")):
        yield path.read_bytes()


def nvidia_reports() -> Iterator[bytes]:
    """A switch's report, which is small, and a GPU's."""
    for name in ("switch_ls10", "hopper_580"):
        yield bytes.fromhex((VECTORS / "nvgpu" / f"{name}.report.hex").read_text())


def reference_manifests() -> Iterator[bytes]:
    """A recorded one without the resources that are not active; a little XML."""
    sound = (VECTORS / "nvgpu" / "hopper_535.vbios_rim_match.xml").read_bytes()
    yield re.sub(rb'\s*<ns0:Resource [^>]*active="False"[^>]*/>', b"", sound)
    yield b'<a xmlns="u" xmlns:b="v" b:c="&lt;&#10;"><b:d/>e&amp;</a>'


def dcap_quotes() -> Iterator[bytes]:
    """A recorded quote of each version, with the leaf of its chain alone: an input is no longer than that."""
    for name in ("sgx/phala_00a067_v3", "tdx/trustee_50806f_v4_debug", "tdx/google_90c06f_v5"):
        raw = (VECTORS / f"{name}.quote").read_bytes()
        quote = dcap.Quote.parse(raw)
        end = b"-----END CERTIFICATE-----\n"
        leaf = quote.signature.certificates.partition(end)[0] + end
        head = raw[len(quote.signed) + 4 : raw.index(quote.signature.certificates) - 4]
        if quote.header.version > 3:
            head = head[:130] + struct.pack("<I", len(head) - 134 + 4 + len(leaf)) + head[134:]
        data = head + struct.pack("<I", len(leaf)) + leaf
        yield quote.signed + struct.pack("<I", len(data)) + data


def dcap_collateral_files() -> Iterator[bytes]:
    """Answers of Intel's service with what belongs to them, and a list alone."""
    names = ("google_50806f.tcbinfo.json", "google_50806f.qeidentity.json", "google_2023_root_crl.der")
    chain = (VECTORS / "tdx" / "ars_tcb_signing_chain.pem").read_bytes()
    yield SEPARATOR.join([*((VECTORS / "tdx" / name).read_bytes() for name in names), chain])
    yield (VECTORS / "tdx" / "ars_root_ca_crl.der").read_bytes()


def boot_logs() -> Iterator[bytes]:
    """The first events of a recorded log, and a little one with its filling."""
    events = ccel.parse_ccel((VECTORS / "tdx" / "cos113_ccel_data.dat").read_bytes()).events
    yield tcg_event_log.pack(events[:3], (Alg.SHA384,))
    yield tcg_event_log.pack([events[7], events[15]], (Alg.SHA384,)) + b"\xff" * 8


def connections() -> Iterator[bytes]:
    """Calls of every kind, resets, windows, settings, and a table that changes."""
    echo, stream = wire.block(wire.fields("/test/Echo")), wire.block(wire.fields("/test/Stream"))
    sound = wire.frame(1, 4, 1, echo) + wire.frame(0, 1, 1, wire.message(b"abc"))
    yield sound
    yield SEPARATOR.join((sound[:30], sound[30:200], sound[200:]))
    yield wire.frame(1, 0, 1, echo[:40]) + wire.frame(9, 4, 1, echo[40:]) + wire.frame(0, 8, 1, wire.padded(b"\0\0", 3))
    opened = wire.frame(1, 4, 1, stream) + wire.frame(0, 0, 1, wire.message(b"a") + wire.message(b"bc")[:6])
    yield SEPARATOR.join((opened, wire.frame(0, 1, 1, b"c"), wire.reset(1), wire.window_update(1, 0)))
    yield opened + wire.reset(1) + wire.window_update(0, 100) + wire.settings((4, 0), (1, 0), (5, 20000)) + sound
    table = echo + wire.literal("x-a", "1", 0x40)
    yield (
        wire.frame(1, 5, 1, b"\x3f\x09" + table)
        + wire.frame(1, 5, 3, echo + wire.indexed(62))
        + wire.frame(1, 5, 5, table)
    )
    small = wire.settings((4, 1)) + sound + wire.window_update(1, 2)
    yield SEPARATOR.join((small, wire.settings((4, 9)), wire.frame(6, 0, 0, bytes(8)), wire.frame(7, 0, 0, bytes(8))))
    yield wire.frame(1, 5, 1, echo + wire.literal("content-length", "8")) + wire.frame(2, 0, 1, bytes(5))
    unasked = wire.frame(
        1, 4, 1, wire.block(wire.fields("/test/Unasked", ("grpc-timeout", "1S"), ("grpc-encoding", "gzip")))
    )
    yield unasked + wire.frame(0, 0, 1, wire.message(b"9", flag=1)) + wire.frame(1, 5, 1, wire.literal("x-trailer", ""))


def workers() -> Iterator[bytes]:
    """A good answer, lies, scribbling, and a batch where an answer should be."""
    tensors = b"".join(
        struct.pack(f"<QH{len(shape)}q", size, len(shape), *shape)
        for size, shape in ((16, (1, 16)), (4, (1, 1)), (8, (1, 2)))
    )
    good = b"=\x03\x00" + tensors
    yield good
    yield SEPARATOR.join((b"!\x00", good, good[:40], b"=\x02\x00" + tensors, good.replace(b"\x10", b"\x40")))
    yield SEPARATOR.join(
        (batch_frames.encode_batch(0, 1, []), batch_frames.encode_done(0, 1, [], 1, 1, 1), b"", b"!abc", good)
    )
    yield batch_frames.encode_not_done(0, 1, batch_frames.STATUS_REFUSED, "no")


SEEDS = {
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
    **collateral.SEEDS,
    **evidence.SEEDS,
    **snp.SEEDS,
    **stored.SEEDS,
}

if __name__ == "__main__":
    for target, seeds in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds():
            path = folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()
            if not path.exists():
                path.write_bytes(seed)
