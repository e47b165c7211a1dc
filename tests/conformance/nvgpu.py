"""Cases of docs/spec/nvgpu-evidence.md: recorded devices, and those of an NVIDIA of our own."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.conformance import corpus
from tests.conformance.build import Book, b64

PAGE = "nvgpu-evidence"
DEVICE_ROOT = "../../../attestation/roots/nvidia/device_identity_ca.pem"
RIM_ROOT = "../../../attestation/roots/nvidia/corim_signing_ca.pem"
THEN = datetime(2024, 6, 1, tzinfo=UTC)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
DRIVER, VBIOS = "580.159.03", "96.00.74.00.20"
STATEMENT = {"cc": "on", "devtools": "off", "environment": "production", "gpus": 1}


def cases(book: Book) -> None:
    """All of them."""
    book.trust("nvidia", nvgpu={"device_roots": [DEVICE_ROOT], "rim_roots": [RIM_ROOT]})
    book.trust("none")
    _recorded(book)
    _stored(book)


def _device(report: Any, chain: str, arch: str = "HOPPER") -> dict[str, Any]:
    return {"arch": arch, "uuid": "unknown", "evidence": b64(report), "certificate": b64(chain)}


def _hex(name: str, *edits: Any) -> dict[str, Any]:
    return {"file": f"../nvgpu/{name}.report.hex", "decode": ["hex"], **({"edits": list(edits)} if edits else {})}


def _stored(book: Book) -> None:
    """Evidence whose challenge nobody knows: there is no `report_data`."""
    gpus, switches = "../nvgpu/multi_gpu_hopper.json", "../nvgpu/multi_switch_ls10.json"
    first, other = ({"$json": {"file": file, "decode": ["/0"]}} for file in (gpus, switches))
    bare = {**other, "edits": [{"pointer": "/nonce"}]}
    wrong = [{"pointer": "/0/nonce", "set": "00" * 32}]
    apart = ["nvgpu.topology.gpu.0", "nvgpu.topology.switch.0"]
    for name, statements, evidence, refusals, says in (
        ("stored-gpus", "GPU-68 GPU-69 GPU-70", {"$json": gpus}, None, {"/nvgpu/devices/3/arch": "HOPPER"}),
        ("stored-device-four-times", "GPU-71", {"$json": switches}, None,
         {"/nvgpu/not_evaluated/29": "nvgpu.distinct", "/nvgpu/not_evaluated/30": "nvgpu.distinct_keys"}),
        ("stored-with-two-nonces", "GPU-69", [first, other], ["nvgpu.one_nonce", *apart], None),
        ("stored-with-the-nonce-of-the-first", "GPU-68 GPU-69", [first, bare],
         ["nvgpu.1.report.nonce", "nvgpu.one_nonce", *apart], None),
        ("stored-with-another-nonce-stated", "GPU-68", {"$json": gpus, "edits": wrong}, ["nvgpu.0.report.nonce"], None),
    ):  # fmt: skip
        more = {} if says is None else {"says": {"/nvgpu/not_evaluated/0": "nvgpu.nonce_length", **says}}
        book.case(PAGE, name, statements, "nvidia", refusals, evidence=evidence, trust="nvidia", time=THEN, **more)


def _recorded(book: Book) -> None:
    known = json.loads(corpus.data("../nvgpu/cases.json"))
    statements = {
        "one-hopper": "GPU-1 GPU-2 GPU-4 GPU-13 GPU-17 GPU-18 GPU-24 GPU-26 GPU-36 GPU-49", "four-hoppers": "GPU-37 GPU-38 GPU-39 GPU-42",
        "switch-four-times": "GPU-37 GPU-38", "hopper-580": "GPU-15 GPU-16 GPU-25 GPU-30", "hopper-535": "GPU-28", "hopper-570": "GPU-26",
        "blackwell": "GPU-27 GPU-21 GPU-29", "hopper-broken-signature": "GPU-24", "switch": "GPU-16 GPU-21", "switch-broken-signature": "GPU-24",
        "switch-with-manifest": "GPU-48 GPU-50 GPU-58", "switch-with-manifest-before-its-time": "GPU-56", "vbios-matches": "GPU-43 GPU-44 GPU-45 GPU-46 GPU-47 GPU-50 GPU-52 GPU-55 GPU-58",
        "vbios-index-9": "GPU-58", "vbios-one-of-two-manifests-matches": "GPU-51", "vbios-manifest-expired": "GPU-56", "vbios-manifest-too-early": "GPU-56",
        "driver-manifest-edited": "GPU-52 GPU-58", "driver-manifest-expired": "GPU-56", "driver-manifest-of-another-version": "GPU-50",
        "vbios-manifest-of-another-chip": "GPU-50", "wrong-nonce": "GPU-17", "before-the-provisioner": "GPU-18", "wrong-architecture": "GPU-21",
    }  # fmt: skip
    for one in known:
        trust = "nvidia"
        if one["rims"]:
            trust = book.trust(
                f"nvidia-{'-'.join(one['rims'])}",
                nvgpu={
                    "device_roots": [DEVICE_ROOT],
                    "rim_roots": [RIM_ROOT],
                    "rims": [f"../nvgpu/{name}" for name in one["rims"]],
                },
            )
        if "evidence" in one:
            evidence: Any = {"$json": f"../nvgpu/{one['evidence']}"}
        else:
            files = one["device"]
            evidence = {
                "device_evidence_list": [
                    _device(
                        {"file": f"../nvgpu/{files['report']}", "decode": ["hex"]},
                        f"../nvgpu/{files['chain']}",
                        files["arch"],
                    )
                ]
            }
        whole = corpus.value(evidence)
        first = (whole["device_evidence_list"] if isinstance(whole, dict) else whole)[0]
        nonce = one.get("nonce") or base64.b64decode(first["evidence"])[4:36].hex()
        book.case(PAGE, one["name"], statements.get(one["name"], "GPU-4"), "nvidia", one["failures"] or None, evidence=evidence,
                  report_data=nonce, trust=trust, time=datetime.fromisoformat(one["time"]))  # fmt: skip

    def changed(
        name: str,
        statement: str,
        refusals: Sequence[str],
        *edits: Any,
        chain: str = "hopper_580",
        data: bytes | None = None,
        trust: str = "nvidia",
        time: datetime = THEN,
    ) -> None:
        evidence = [_device(_hex("hopper_580", *edits), f"../nvgpu/{chain}.chain.pem")]
        nonce = data if data is not None else corpus.data(_hex("hopper_580"))[4:36]
        book.case(
            PAGE, name, statement, "nvidia", refusals, evidence=evidence, report_data=nonce, trust=trust, time=time
        )

    def put(at: int, value: bytes) -> dict[str, Any]:
        return {"at": at, "remove": len(value), "insert": value.hex()}

    report = corpus.data(_hex("hopper_580"))
    size = int.from_bytes(report[42:45], "little")
    opaque = 79 + size
    signature = "nvgpu.0.report.signature"
    for name, statement, at, value in (
        ("request-version-1.2", "GPU-8", 0, b"\x12"), ("request-of-another-kind", "GPU-9", 1, b"\xe1"), ("no-signature-requested", "GPU-10", 2, b"\0"),
        ("not-all-measurements", "GPU-10", 3, b"\1"), ("slot-1", "GPU-11", 36, b"\1"),
    ):  # fmt: skip
        changed(name, statement, ["nvgpu.0.report.request", signature], put(at, value))
    changed("response-version-1.2", "GPU-12", ["nvgpu.0.report.response", signature], put(37, b"\x12"))
    changed("response-of-another-kind", "GPU-12", ["nvgpu.0.report.response", signature], put(38, b"\x61"))
    changed("measurement-changed", "GPU-24", [signature], put(60, b"\xff\xff"))
    structure = ["nvgpu.0.report.structure"]
    changed("block-twice", "GPU-13", structure, put(45 + 55, b"\1"))
    changed("block-of-another-specification", "GPU-13", structure, put(46, b"\2"))
    changed("block-not-filled", "GPU-13", structure, put(50, b"\x2f"))
    changed("fewer-blocks-than-said", "GPU-13", structure, put(41, b"\x41"))
    changed("report-cut", "GPU-13", structure, {"at": len(report) - 1, "remove": 1})
    changed("report-with-more", "GPU-13", structure, {"at": len(report), "insert": "00"})
    changed("opaque-not-filled", "GPU-14", structure, put(opaque + 2, b"\7"))
    second = opaque + 12
    changed("opaque-field-twice", "GPU-14", structure, put(second, report[opaque : opaque + 2]))
    driver = report.index(b"580.159.03")
    changed("driver-version-not-ascii", "GPU-15", structure, put(driver, b"\xff"))
    changed("driver-version-changed", "GPU-24", [signature], put(driver, b"9"))
    for name, at, value in (
        ("r-zero", -96, bytes(48)),
        ("s-zero", -48, bytes(48)),
        ("r-order", -96, ORDER.to_bytes(48, "big")),
        ("s-most", -48, b"\xff" * 48),
    ):
        changed(f"signature-{name}", "GPU-23", ["nvgpu.0.report.signature_numbers"], put(len(report) + at, value))
    changed("another-device-s-chain", "GPU-24 GPU-25", [signature, "nvgpu.0.fwid"], chain="hopper_570_expiredrim")
    changed("nobody-trusted", "GPU-18", ["nvgpu.0.chain"], trust="none")
    changed("nonce-of-31-bytes", "GPU-5", ["nvgpu.nonce_length", "nvgpu.0.report.nonce"], data=report[4:35])
    good = {"device_evidence_list": [_device(_hex("hopper_580"), "../nvgpu/hopper_580.chain.pem")]}
    for name, statement, edits in (
        ("no-device", "GPU-4", [{"pointer": "/device_evidence_list", "set": []}]),
        ("unknown-architecture", "GPU-4", [{"pointer": "/device_evidence_list/0/arch", "set": "AMPERE"}]),
        ("no-chain", "GPU-4", [{"pointer": "/device_evidence_list/0/certificate", "set": ""}]),
        (
            "statement-of-three-members",
            "GPU-3",
            [{"pointer": "/hermetic", "set": {"cc": "on", "devtools": "off", "gpus": 1}}],
        ),
        (
            "statement-of-another-environment",
            "GPU-3",
            [{"pointer": "/hermetic", "set": {**STATEMENT, "environment": "test"}}],
        ),
        ("statement-of-no-gpu", "GPU-3", [{"pointer": "/hermetic", "set": {**STATEMENT, "gpus": 0}}]),
    ):
        wrong = corpus.edited(json.loads(json.dumps(good)), edits)
        book.case(
            PAGE,
            name,
            statement,
            "nvidia",
            ["nvgpu.structure"],
            evidence=wrong,
            report_data=report[4:36],
            trust="nvidia",
            time=THEN,
        )
    too_long = corpus.edited(
        json.loads(json.dumps(good)),
        [{"pointer": "/device_evidence_list/0/evidence", "set": b64("../tpm/eventlog_debian-10.bin")}],
    )
    book.case(
        PAGE,
        "report-too-long",
        "GPU-13",
        "nvidia",
        ["nvgpu.structure"],
        evidence=too_long,
        report_data=report[4:36],
        trust="nvidia",
        time=THEN,
    )
