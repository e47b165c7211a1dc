"""Cases of docs/spec/claims.md: all that one recorded piece of each kind says, and our own runtime data."""

import json
from typing import Any

from hermetic.attestation.hybrid_key import public_key
from tests.conformance import corpus, evidence, nvgpu, snp, tdx
from tests.conformance.build import Book, b64

PAGE = "claims"
TPM, DCAP, NVGPU, DEVICE, SNP, SAMPLE, OURS = (
    range(1, 16), range(16, 27), range(27, 32), range(32, 39), range(39, 55), range(55, 56), range(56, 67),
)  # fmt: skip
"""Numbers of the rows of each table."""


def cases(book: Book) -> None:
    """All of them."""
    _kinds(book)
    _ours(book)


def _named(*rows: range) -> str:
    return " ".join(f"CLM-{number}" for one in rows for number in one)


def _kinds(book: Book) -> None:
    book.trust("amd", snp={"authorities": snp.SHIPPED})
    book.trust("intel-2025-07", dcap={"roots": [tdx.ROOT], "collateral": tdx.SET_2025})
    book.trust("intel-sgx", dcap={"roots": [tdx.ROOT], "collateral": [tdx.SGX_SET]})
    book.trust("nvidia", nvgpu={"device_roots": [nvgpu.DEVICE_ROOT], "rim_roots": [nvgpu.RIM_ROOT]})
    azure = {"$json": snp.AZURE}
    quote = {"quote": b64(tdx.COS), "cc_eventlog": b64(tdx.LOG)}
    gpus = {"$json": "../nvgpu/multi_gpu_hopper.json"}
    nonce = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
    blackwell = [
        nvgpu._device(
            {"file": "../nvgpu/blackwell.report.hex", "decode": ["hex"]}, "../nvgpu/blackwell.chain.pem", "BLACKWELL"
        )
    ]
    for name, judge, kinds, rows, given, data, trust, time in (
        ("azure", "az-snp-vtpm", ("snp", "tpm"), (SNP, TPM), azure, b"challenge".hex(), "amd", snp.NOW),
        ("tdx", "tdx", ("tdx",), (DCAP,), quote, tdx.data_of(tdx.COS).hex(), "intel-2025-07", tdx.JULY),
        ("sgx", "sgx", ("sgx",), (DCAP,), {"quote": b64(tdx.SGX)}, tdx.data_of(tdx.SGX).hex(), "intel-sgx", tdx.JUNE),
        ("gpus", "nvidia", ("nvgpu",), (NVGPU, DEVICE), gpus, _nonce(gpus), "nvidia", nvgpu.THEN),
        ("blackwell", "nvidia", ("nvgpu",), (NVGPU, DEVICE), blackwell, nonce, "nvidia", snp.LATER),
        ("sample", "sample", ("sample",), (SAMPLE,), {"svn": "1", "report_data": ""}, "", "demo", evidence.NOW),
    ):
        case: dict[str, Any] = {
            "judge": judge,
            "evidence": given,
            "report_data": data,
            "trust": trust,
            "time": time.isoformat(),
        }
        book.trust("demo", profile="demo")
        book.case(
            PAGE,
            f"{name}-says",
            _named(*rows),
            judge,
            says=_said(book, case, kinds),
            **{k: v for k, v in case.items() if k != "judge"},
        )


def _nonce(template: Any) -> str:
    whole = corpus.value(template)
    devices = whole["device_evidence_list"] if isinstance(whole, dict) else whole
    import base64

    return base64.b64decode(devices[0]["evidence"])[4:36].hex()


def _said(book: Book, case: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """What our verifier says, to be kept: other implementations and later versions must say the same."""
    from tests.conformance import runner

    known = corpus.trusts
    corpus.trusts = lambda: book.trusts  # type: ignore[assignment] # they are not written yet
    runner.trust.cache_clear()
    try:
        said = runner.JUDGES[case["judge"]](case)
    finally:
        corpus.trusts = known
        runner.trust.cache_clear()
    return {f"/{kind}/{name}": value for kind in kinds for name, value in json.loads(json.dumps(said[kind])).items()}


def _ours(book: Book) -> None:
    full = json.loads(corpus.data("../claims/accepted-full.json"))["hermetic"]
    base = {"$json": {"file": "../claims/accepted-full.json", "decode": ["/hermetic"]}}
    rows = [f"CLM-{number}" for number in OURS]
    profile, purpose, manifest, waivers, publishers, policies, head, zeroing, by, lease, hybrid = rows
    book.case(
        PAGE,
        "ours",
        " ".join(rows),
        "runtime-data",
        claims=base,
        says={f"/{name}": value for name, value in full.items()},
    )
    key = {"$json": {"file": "../claims/accepted-serving-key.json", "decode": ["/hermetic"]}}
    book.case(
        PAGE,
        "ours-of-a-serving-key",
        f"{purpose} {manifest}",
        "runtime-data",
        claims=key,
        says={"/purpose": "serving-key", "/manifest-digest": None},
    )
    book.case(
        PAGE,
        "ours-least",
        f"{purpose} {waivers} {zeroing} {by} {lease} {hybrid}",
        "runtime-data",
        claims={"profile": "production"},
        says={
            "/purpose": "model",
            **dict.fromkeys(("/waivers", "/zeroing", "/zeroing-by", "/lease-key", "/hybrid-key")),
        },
    )
    thumbprint = "5e" * 32
    told = {**base, "edits": [{"pointer": "/lease-key", "set": thumbprint}]}
    book.case(PAGE, "ours-with-a-lease-key", lease, "runtime-data", claims=told, says={"/lease-key": thumbprint})
    pair = public_key(bytes(32))
    wrapped = {**base, "edits": [{"pointer": "/hybrid-key", "set": pair}]}
    book.case(PAGE, "ours-with-a-hybrid-key", hybrid, "runtime-data", claims=wrapped, says={"/hybrid-key": pair})
    for name, statement, edit in (
        ("no-profile", profile, {"pointer": "/profile", "remove": True}), ("another-profile", profile, {"pointer": "/profile", "set": "test"}),
        ("another-purpose", purpose, {"pointer": "/purpose", "set": "other"}), ("short-digest", manifest, {"pointer": "/manifest-digest", "set": "ab"}),
        ("upper-case-digest", manifest, {"pointer": "/manifest-digest", "set": "AB" * 32}), ("waivers-as-text", waivers, {"pointer": "/waivers", "set": "no_network"}),
        ("waiver-with-a-space", waivers, {"pointer": "/waivers", "set": ["no network"]}), ("publishers-short", publishers, {"pointer": "/trusted-publishers", "set": "ab"}),
        ("policies-as-text", policies, {"pointer": "/policies", "set": "one"}), ("log-head-as-number", head, {"pointer": "/log-head", "set": 7}),
        ("another-zeroing", zeroing, {"pointer": "/zeroing", "set": "sometimes"}), ("another-zeroing-by", by, {"pointer": "/zeroing-by", "set": "hope"}),
        ("lease-key-in-base64", lease, {"pointer": "/lease-key", "set": "4Qk8L3VJ1nVmX0oH0eQm0mWmU0o0b4J3sV5Jw0mO8cE"}),
        ("lease-key-short", lease, {"pointer": "/lease-key", "set": "ab" * 20}),
        ("lease-key-in-capitals", lease, {"pointer": "/lease-key", "set": "AB" * 32}),
        ("hybrid-key-short", hybrid, {"pointer": "/hybrid-key", "set": pair[:-1]}),
        ("hybrid-key-in-base64", hybrid, {"pointer": "/hybrid-key", "set": f"+/{pair[2:]}"}),
    ):  # fmt: skip
        book.case(PAGE, f"ours-{name}", statement, "runtime-data", ["malformed"], claims={**base, "edits": [edit]})
