"""What machines need of a bundle: read from stored evidence, or from an inventory (`hermetic-machines/1`).

Evidence is read here, not verified: whoever stored it says whose it is. Which kind a file is: attestation/stored/.
"""

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self, TypeAlias

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, ValidationError

from hermetic.attestation.abi.amd_certificate import PRODUCT_NAME, AmdCertificate
from hermetic.attestation.abi.azure_hcl import AzureEvidence
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.nvgpu import Report as DeviceReport
from hermetic.attestation.abi.pck import PckExtension, parse_chain
from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.abi.snp import Generation, Report, SigningKey, Tcb
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.collateral.items import read, tcb_text
from hermetic.attestation.collateral.kinds import MAX_TEXT, Kind
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.verifiers.dcap import PCK_ISSUERS
from hermetic.attestation.verifiers.dcap_chain import common_name
from hermetic.attestation.verifiers.dcap_collateral import TCB_SIGNER
from hermetic.attestation.verifiers.dcap_evidence import DcapEvidence
from hermetic.attestation.verifiers.nvgpu_device import chip_of
from hermetic.attestation.verifiers.nvgpu_evidence import NvGpuEvidence
from hermetic.errors import ConfigurationError, InvalidRequestError

MAX_INVENTORY_SIZE: Final = 16 * 1024 * 1024  # bytes
MAX_MACHINES: Final = 65_536
MAX_GPUS: Final = 64

Text: TypeAlias = Annotated[str, StringConstraints(pattern=rf"^[ -~]{{1,{MAX_TEXT}}}$")]
Svns: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Svn: TypeAlias = Annotated[StrictInt, Field(ge=0, le=0xFFFF)]
Need: TypeAlias = tuple[Kind, str]
"""A kind, and a subject or the beginning of one."""


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Snp(_Form):
    """A SEV-SNP processor; `chip` is its id in hex, for a VLEK the provider's."""

    generation: Generation
    key: Literal["VCEK", "VLEK"] = "VCEK"
    chip: Text
    tcb: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3}){3,4}$")]

    @property
    def needs(self) -> tuple[Need, ...]:
        """The key's certificate, and the list of those above it."""
        kind: Kind = "vcek" if self.key == "VCEK" else "vlek"
        return ((kind, f"{self.generation} {self.chip} {self.tcb}"), ("amd-crl", f"ARK-{self.generation}"))


class Dcap(_Form):
    """A platform for TDX or SGX; SVNs as its PCK certificate and its quotes say."""

    kind: Literal["TDX", "SGX"]
    fmspc: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    pce_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}$")] = "0000"
    pck_ca: Literal["platform", "processor"]
    cpu_svn: Svns
    pce_svn: Svn
    tee_tcb_svn: Svns | None = None
    qe_svn: Svn | None = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """What Intel says of it, and the lists."""
        ca = next(name for name, short in PCK_ISSUERS.items() if short == self.pck_ca)
        return (
            ("tcb-info", f"{self.kind} {self.fmspc} {self.pce_id}"),
            ("qe-identity", "TD_QE" if self.kind == "TDX" else "QE"),
            ("pck-crl", ca),
            ("root-crl", "Intel SGX Root CA"),
            ("signing-chain", TCB_SIGNER),
        )


class Gpu(_Form):
    """An NVIDIA device; `certificates` are the serial numbers, in hex, of those that can be revoked."""

    chip: Text
    driver: Text | None = None
    vbios: Text | None = None
    certificates: Annotated[tuple[Text, ...], Field(max_length=8)] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """Manifests of what runs on it, and answers about its certificates."""
        rims: list[tuple[Kind, str | None]] = [("driver-rim", self.driver), ("vbios-rim", self.vbios)]
        return (
            *((kind, f"{self.chip} {version}") for kind, version in rims if version is not None),
            *(("ocsp", serial) for serial in self.certificates),
        )


class Machine(_Form):
    """One machine by its name."""

    name: Text
    snp: Snp | None = None
    dcap: Dcap | None = None
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=MAX_GPUS)] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """All that its evidence is judged with, each once."""
        parts = [part for part in (self.snp, self.dcap, *self.gpus) if part is not None]
        return tuple(dict.fromkeys(need for part in parts for need in part.needs))

    def joined(self, other: "Machine") -> "Machine":
        """This machine with what `other`, read from another file, says of it."""
        return Machine(
            name=self.name, snp=self.snp or other.snp, dcap=self.dcap or other.dcap, gpus=self.gpus + other.gpus
        )


class Inventory(_Form):
    """The whole form."""

    format: Literal["hermetic-machines/1"]
    machines: Annotated[tuple[Machine, ...], Field(min_length=1, max_length=MAX_MACHINES)]

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read an inventory; raises `ConfigurationError` naming every member at fault."""
        if len(data) > MAX_INVENTORY_SIZE:
            raise ConfigurationError(f"inventory: expected at most {MAX_INVENTORY_SIZE} bytes, got {len(data)}")
        try:
            return cls.model_validate(tomllib.loads(data.decode()))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'form'}: {e['msg']}" for e in error.errors()[:16])
            raise ConfigurationError(f"inventory: {faults}") from error
        except ValueError as error:
            raise ConfigurationError(f"inventory: expected TOML, got {error}") from error


def of_evidence(name: str, kind: str, evidence: JsonValue, vceks: Sequence[AmdCertificate] = ()) -> Machine:
    """The machine of which `evidence` is, of a kind as `stored.recognise` names it; raises `InvalidRequestError`.

    `vceks` tell a chip's generation where its report does not (version 2).
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise InvalidRequestError(f"{name}: expected evidence of {', '.join(sorted(_READERS))}, got {kind}")
    try:
        return reader(_Reader(name, vceks), evidence)
    except (InvalidRequestError, ValueError) as error:
        raise InvalidRequestError(f"{name}: expected evidence of kind {kind}, got {error}") from error


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    vceks: Sequence[AmdCertificate]

    def snp(self, evidence: JsonValue) -> Machine:
        parsed = SnpEvidence.parse(evidence)
        return self._snp(parsed.report, parsed.certificates)

    def dcap(self, evidence: JsonValue) -> Machine:
        return self._quote(DcapEvidence.parse(evidence).quote)

    def azure_snp(self, evidence: JsonValue) -> Machine:
        azure = AzureEvidence.parse(evidence, "vcek")
        return self._snp(azure.hcl.hardware_report, Certificates(vceks=(azure.endorsement,)))

    def azure_tdx(self, evidence: JsonValue) -> Machine:
        return self._quote(Quote.parse(AzureEvidence.parse(evidence, "td_quote").endorsement))

    def devices(self, evidence: JsonValue) -> Machine:
        parsed = NvGpuEvidence.parse(evidence)
        return Machine(name=self.name, gpus=tuple(_gpu(device.report, device.chain) for device in parsed.devices))

    def _snp(self, data: bytes, sent: Certificates) -> Machine:
        report = Report.parse(data)
        keys = [read("vcek", one) for one in sent.vceks] + [read("vlek", one) for one in sent.vleks]
        own = [one.subject.split(" ")[0] for one in keys]
        known = [
            one.text(PRODUCT_NAME).partition("-")[0] for one in self.vceks if report.chip_id in one.extensions.values()
        ]
        told = None if report.cpuid is None else Generation.of(*report.cpuid)
        generation = told or next((Generation(one) for one in (*own, *known)), None)
        if generation is None:
            raise InvalidRequestError("a report that names no generation, and no certificate of its chip is known")
        is_chip_s = report.signing_key is not SigningKey.VLEK
        provider = next((one.subject.rsplit(" ", 1)[0].split(" ", 1)[1] for one in keys), "unknown")
        chip = report.chip_id[: generation.hwid_size].hex() if is_chip_s else provider
        tcb = tcb_text(Tcb.parse(report.reported_tcb, generation))
        key: Literal["VCEK", "VLEK"] = "VCEK" if is_chip_s else "VLEK"
        return Machine(name=self.name, snp=Snp(generation=generation, key=key, chip=chip, tcb=tcb))

    def _quote(self, quote: Quote) -> Machine:
        chain = parse_chain(quote.signature.certificates)
        pck, body = PckExtension.of(chain[0]), quote.body
        is_tdx = isinstance(body, TdReport)
        found = Dcap(
            kind="TDX" if is_tdx else "SGX",
            fmspc=pck.fmspc.hex(),
            pce_id=pck.pce_id.hex(),
            pck_ca=PCK_ISSUERS.get(common_name(chain[1].subject), "platform"),
            cpu_svn=bytes(pck.components).hex(),
            pce_svn=pck.pce_svn,
            tee_tcb_svn=body.tee_tcb_svn.hex() if isinstance(body, TdReport) else None,
            qe_svn=EnclaveReport.parse(quote.signature.qe_report).isv_svn,
        )
        return Machine(name=self.name, dcap=found)


_READERS: Final[Mapping[str, Callable[[_Reader, JsonValue], Machine]]] = {
    "az-snp-vtpm": _Reader.azure_snp,
    "az-tdx-vtpm": _Reader.azure_tdx,
    "nvgpu": _Reader.devices,
    "sgx": _Reader.dcap,
    "snp": _Reader.snp,
    "tdx": _Reader.dcap,
}


def _gpu(data: bytes, chain: Sequence[x509.Certificate]) -> Gpu:
    report = DeviceReport.parse(data)
    return Gpu(
        chip=chip_of(chain[0]) or hashlib.sha256(data).hexdigest(),
        driver=report.driver_version,
        vbios=report.vbios_version,
        certificates=tuple(f"{one.serial_number:x}" for one in chain[1:-1]),
    )
