"""What verified evidence says, as typed facts (docs/spec/claims.md).

Verifiers make claims, policy/ reads them, brokers store them and put them into tokens. Digests and fingerprints
are lower-case hex, because policies, tokens and people read them so. Nothing here decides anything.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self, TypeAlias, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import InvalidRequestError

_Model = TypeVar("_Model", bound=BaseModel)

MAX_NAMES: Final = 64  # names in a list of waivers or policies
MAX_EVENTS: Final = 4096  # digests extended in one boot
MAX_DEVICES: Final = 64  # GPUs and switches of one machine
MAX_DEVICE_CHECKS: Final = 2048  # names of checks of all of them
MAX_ADVISORIES: Final = 1024  # Intel's advisories that stand against one platform
RTMR_COUNT: Final = 4  # runtime measurement registers of a TDX domain

Sha256Hex: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Sha384Hex: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{96}$")]
Hex64: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""64 bits: more than JSON's numbers hold."""
Hex: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{2}){1,64}$")]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/+@=-]{1,256}$")]
HybridKey: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1622}$")]
"""1216 bytes, base64url (docs/spec/post-quantum.md)."""
Profile: TypeAlias = Literal["production", "demo"]
Zeroing: TypeAlias = Literal["enforced", "best effort"]
ZeroingBy: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(?:preload:[0-9a-f]{64}|glibc-tunables|nothing)$")]
"""What overwrites freed memory: a preloaded library, with the SHA-256 of its source; glibc, told to; or nothing."""


Evaluated: TypeAlias = Literal["match", "not evaluated"]


class _Facts(BaseModel):
    """Immutable; unknown members are refused; members travel under their hyphenated names or their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)


class MeasuredCode(_Facts):
    """How a chain from boot measures what runs: never a hash that a process made of itself."""

    by: Literal["verity-command-line", "uki"]
    root_hashes: tuple[Sha256Hex, ...] = ()  # dm-verity root hashes that the measured command line names
    rests_on: tuple[int, ...]  # PCRs (TDX: RTMRs, beside MRTD) whose values a policy must pin for this to mean anything


class TpmClaims(_Facts):
    """A genuine quote: which TPM, in which boot, with which PCRs and what they are made of."""

    kind: Literal["tpm"] = "tpm"
    debug: Literal[False] = False  # a TPM has no debug mode
    checks: tuple[str, ...] = Field(max_length=MAX_NAMES)
    software: bool  # the AK certificate says that the EK is of a software TPM: proves the protocol, not hardware
    enrolled: Literal["certificate", "provisioned", "hardware-report", "nobody"]
    ak_name: str | None  # hex of nameAlg || digest; None where no certificate vouches for the AK
    ak_spki: Sha256Hex
    ek: Sha256Hex | None  # SHA-256 of the EK's SubjectPublicKeyInfo; None where no certificate vouches for the AK
    reset_count: int
    restart_count: int
    firmware_version: Hex64
    clock_safe: bool
    pcrs: Mapping[str, Sha256Hex]  # decimal index -> value, SHA-256 bank, quoted ones only
    boot_log: bool  # the firmware's event log came along and replays to the quoted PCRs
    secure_boot: bool | None  # as the replayed firmware log says; None where it does not
    measured_code: MeasuredCode | None
    log_pcr: int | None  # PCR of our own event log
    log_base: Sha256Hex | None  # what that PCR held before our first event, as the firmware's log says
    manifests: tuple[Sha256Hex, ...] = Field(max_length=MAX_EVENTS)  # extended in this boot, in order

    @property
    def code_measured(self) -> bool:
        """Whether a chain from boot measures the code."""
        return self.measured_code is not None


class NvidiaDevice(_Facts):
    """One genuine GPU or NVSwitch, and what its report says."""

    arch: Literal["HOPPER", "BLACKWELL", "LS10"]  # LS10 is a switch
    device: Sha256Hex  # of the chip's own public key (SubjectPublicKeyInfo), which stays over firmware updates
    ueid: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,64}$")]  # NVIDIA's: serial number of the signing key
    driver_version: str | None
    vbios_version: str | None
    mode: Literal["single", "multiple", "protected-pcie"] | None  # None: the report does not say
    driver_rim: Evaluated
    vbios_rim: Evaluated
    revocation: Literal["good", "hold", "not evaluated"]


class NvGpuClaims(_Facts):
    """The genuine NVIDIA devices of one machine, all bound to one nonce."""

    kind: Literal["nvgpu"] = "nvgpu"
    debug: Literal[False] = False  # evidence that says otherwise is refused
    checks: tuple[str, ...] = Field(max_length=MAX_DEVICE_CHECKS)
    not_evaluated: tuple[str, ...] = Field(max_length=MAX_DEVICE_CHECKS)
    devices: tuple[NvidiaDevice, ...] = Field(min_length=1, max_length=MAX_DEVICES)
    cc_state: Literal["stated", "not evaluated"]  # the guest says: CC on, DEVTOOLS off; no report says it
    topology: Evaluated  # the switches that the GPUs name are the switches that are here

    @property
    def code_measured(self) -> bool:
        """A device measures its own firmware, never the code that we run."""
        return False


class SnpTcb(_Facts):
    """Security version numbers of a processor's firmware; `fmc` on Turin only."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


class SnpClaims(_Facts):
    """A genuine SEV-SNP report: which guest, under which policy, on which processor with which firmware."""

    kind: Literal["snp"] = "snp"
    debug: bool  # the host may read the guest's memory
    checks: tuple[str, ...] = Field(max_length=MAX_NAMES)
    not_evaluated: tuple[str, ...] = Field(max_length=MAX_NAMES)
    version: int
    generation: Literal["Milan", "Genoa", "Turin"]
    signed_by: Literal["VCEK", "VLEK"]
    chip_id: Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{16}|[0-9a-f]{128})$")] | None  # None: masked
    csp_id: str | None  # whose key a VLEK is; None for a VCEK
    endorsement: Sha256Hex  # SHA-256 of the endorsement key's certificate (DER)
    measurement: Sha384Hex  # of the guest's memory and registers at launch
    host_data: Sha256Hex  # 32 bytes that the host gave at launch; trusted only where something else pins them
    id_key_digest: Sha384Hex
    author_key_digest: Sha384Hex | None
    family_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    image_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    guest_svn: int
    vmpl: int
    report_id: Sha256Hex
    migration_agent: Sha256Hex | None  # the agent's report id; None where there is no agent
    abi: str  # firmware ABI version that the guest demands, "major.minor"
    policy: tuple[Name, ...]  # what the guest's policy allows or demands, by name
    platform: tuple[Name, ...]  # what the platform says of itself, by name; "bit-N" where there is none
    reported_tcb: SnpTcb
    current_tcb: SnpTcb
    committed_tcb: SnpTcb
    launch_tcb: SnpTcb
    firmware: str  # "major.minor.build", current
    committed_firmware: str
    launch_mitigations: Hex64 | None  # bit vector; None before report version 5
    current_mitigations: Hex64 | None

    @property
    def code_measured(self) -> bool:
        """False: the measurement is of what the guest starts with; whether that measures code, its reader knows."""
        return False


class TcbClaims(_Facts):
    """What Intel's collateral says of a platform's trusted computing base; statuses are Intel's words."""

    status: Name  # of the whole: the platform's, spoilt by an old module or quoting enclave
    advisories: tuple[Name, ...] = Field(max_length=MAX_ADVISORIES)
    platform_status: Name
    module_status: Name | None  # of the TDX module; None for SGX and for modules of version 0
    qe_status: Name
    date: AwareDatetime  # of the platform's level
    evaluation_number: int  # the lower one of TCB info and QE identity
    collateral_expires: AwareDatetime


class PlatformClaims(_Facts):
    """The platform below a TDX domain or an SGX enclave, as its PCK certificate says."""

    fmspc: Hex  # family, model, stepping, platform, custom SKU: which collateral is for it
    ppid: Hex  # which machine
    instance_id: Hex | None  # which machine, of several packages
    pck_ca: Literal["platform", "processor"] | None
    cpu_svn: Hex
    pce_svn: int
    configuration: Mapping[Name, bool]  # dynamic-platform, cached-keys, smt; without those that are not said
    tcb: TcbClaims | None  # None where no collateral was given


class TdxClaims(_Facts):
    """A genuine TDX quote: which domain, below which module, on which platform."""

    kind: Literal["tdx"] = "tdx"
    debug: bool  # the host may look into the domain
    checks: tuple[str, ...] = Field(max_length=MAX_NAMES)
    not_evaluated: tuple[str, ...] = Field(max_length=MAX_NAMES)
    quote_version: int
    platform: PlatformClaims
    tee_tcb_svn: Hex
    mr_seam: Sha384Hex  # the TDX module
    mr_signer_seam: Sha384Hex
    seam_attributes: Hex
    attributes: tuple[Name, ...]  # names of the bits that are set; a reserved one is BIT_<n>
    xfam: Hex
    mr_td: Sha384Hex  # the domain as it was built: its firmware
    mr_config_id: Sha384Hex
    mr_owner: Sha384Hex
    mr_owner_config: Sha384Hex
    rtmrs: Annotated[tuple[Sha384Hex, ...], Field(min_length=RTMR_COUNT, max_length=RTMR_COUNT)]
    mr_service_td: Sha384Hex | None  # None in TD 1.0, which says nothing of service domains
    boot_log: bool  # the firmware's event log came along and replays to the quoted RTMRs
    secure_boot: bool | None
    measured_code: MeasuredCode | None

    @property
    def sept_ve_disable(self) -> bool:
        """Whether the module keeps the host from injecting exceptions by taking pages away."""
        return "SEPT_VE_DISABLE" in self.attributes

    @property
    def code_measured(self) -> bool:
        """Whether a chain from boot measures the code."""
        return self.measured_code is not None


class SgxClaims(_Facts):
    """A genuine SGX quote: which enclave, on which platform."""

    kind: Literal["sgx"] = "sgx"
    debug: bool
    checks: tuple[str, ...] = Field(max_length=MAX_NAMES)
    not_evaluated: tuple[str, ...] = Field(max_length=MAX_NAMES)
    quote_version: int
    platform: PlatformClaims
    mr_enclave: Sha256Hex
    mr_signer: Sha256Hex
    attributes: Hex
    misc_select: Hex
    config_id: Hex
    isv_prod_id: int
    isv_svn: int

    @property
    def code_measured(self) -> bool:
        """False: MRENCLAVE is of what the enclave starts with; what that loads, its reader knows."""
        return False


class SampleClaims(_Facts):
    """Evidence that proves nothing: for the demo profile."""

    kind: Literal["sample"] = "sample"
    debug: Literal[False] = False
    checks: tuple[str, ...] = Field(max_length=MAX_NAMES)
    svn: str

    @property
    def code_measured(self) -> bool:
        """Nothing is measured."""
        return False


class HermeticClaims(_Facts):
    """Our additions to the runtime data (`runtime-data.hermetic`); bound, because they lie inside the hashed object."""

    profile: Profile
    purpose: Literal["model", "serving-key"] = "model"  # what the attested key is for
    manifest_digest: Sha256Hex | None = Field(default=None, alias="manifest-digest")
    waivers: tuple[Name, ...] | None = Field(default=None, max_length=MAX_NAMES)
    trusted_publishers: Sha256Hex | None = Field(default=None, alias="trusted-publishers")
    policies: tuple[Name, ...] = Field(default=(), max_length=MAX_NAMES)
    lease_key: Sha256Hex | None = Field(default=None, alias="lease-key")  # who signs the leases that the worker obeys
    hybrid_key: HybridKey | None = Field(default=None, alias="hybrid-key")  # the key that a model's key is wrapped to
    log_head: Name | None = Field(default=None, alias="log-head")
    zeroing: Zeroing | None = None
    zeroing_by: ZeroingBy | None = Field(default=None, alias="zeroing-by")

    @classmethod
    def parse(cls, members: Mapping[str, JsonValue]) -> Self:
        """Read `runtime-data.hermetic`; raises `InvalidRequestError` naming each wrong member."""
        return _parsed(cls, members)


KindClaims: TypeAlias = Annotated[
    TpmClaims | SnpClaims | TdxClaims | SgxClaims | NvGpuClaims | SampleClaims, Field(discriminator="kind")
]


class Claims(_Facts):
    """Everything known of one attested peer: a kind of evidence each, our runtime data, and who called."""

    kinds: tuple[KindClaims, ...] = Field(min_length=1, max_length=MAX_NAMES)
    hermetic: HermeticClaims | None = None
    client: str | None = None  # identity of the verified client certificate, where the connection had one

    def kind(self, name: str) -> KindClaims | None:
        """The claims of that kind of evidence, None where there was none."""
        return next((claims for claims in self.kinds if claims.kind == name), None)

    @property
    def tpm(self) -> TpmClaims | None:
        """The TPM's claims, None where there was no such evidence."""
        return next((claims for claims in self.kinds if isinstance(claims, TpmClaims)), None)

    @property
    def snp(self) -> SnpClaims | None:
        """The SEV-SNP guest's claims, None where there was no such evidence."""
        return next((claims for claims in self.kinds if isinstance(claims, SnpClaims)), None)

    @property
    def tdx(self) -> TdxClaims | None:
        """The TDX domain's claims, None where there was no such evidence."""
        return next((claims for claims in self.kinds if isinstance(claims, TdxClaims)), None)

    @property
    def sgx(self) -> SgxClaims | None:
        """The SGX enclave's claims, None where there was no such evidence."""
        return next((claims for claims in self.kinds if isinstance(claims, SgxClaims)), None)

    @property
    def nvgpu(self) -> NvGpuClaims | None:
        """The NVIDIA devices' claims, None where there was no such evidence."""
        return next((claims for claims in self.kinds if isinstance(claims, NvGpuClaims)), None)

    def joined(self, other: "Claims") -> "Claims":
        """These claims with the kinds of `other` (evidence of a device beside the primary) added."""
        return self.model_copy(update={"kinds": self.kinds + other.kinds})

    def with_hermetic(self, members: Mapping[str, JsonValue] | None) -> "Claims":
        """These claims with the runtime data that the verified report data covers.

        The caller must have given the same `members` to `evidence.report_data`; raises `InvalidRequestError`.
        """
        hermetic = None if members is None else HermeticClaims.parse(members)
        return self.model_copy(update={"hermetic": hermetic})

    def with_client(self, identity: str | None) -> "Claims":
        """These claims with the identity of the client certificate that the connection was verified with."""
        return self.model_copy(update={"client": identity})

    def to_json(self) -> dict[str, JsonValue]:
        """The claims as JSON, for a token or a record; `parse` reads it back."""
        return self.model_dump(mode="json")

    @classmethod
    def parse(cls, members: Mapping[str, JsonValue]) -> Self:
        """Read what `to_json` wrote; raises `InvalidRequestError`."""
        return _parsed(cls, members)


def _parsed(model: type[_Model], members: Mapping[str, JsonValue]) -> _Model:
    try:
        return model.model_validate(members)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InvalidRequestError(f"expected {model.__name__}, got members that do not fit: {problems}") from error
