"""Intel's collateral for DCAP quotes: TCB info, identity of the quoting enclave, revocation lists.

Source: Intel PCS API v4 (TCB info v3, QE identity v2). Here: files as Intel's service or a cache of it hands them out
-> typed values, with the exact bytes that are signed. Not here: whether anything of it is signed, in time or fits a
quote (verifiers/dcap_collateral.py). Everything is verified again for each quote: what this reads proves nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, Self, TypeAlias, TypeVar

from cryptography import x509
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hermetic.attestation.abi.pem import MALFORMED, certificates
from hermetic.errors import InvalidRequestError

_Model = TypeVar("_Model", bound=BaseModel)

MAX_FILE_SIZE: Final = 1024 * 1024  # bytes; real ones have under 20 KB
MAX_FILES: Final = 256
MAX_LEVELS: Final = 256  # TCB levels of one platform
MAX_REVOKED: Final = 100_000  # entries of one revocation list

_TCB_INFO: Final = b'{"tcbInfo":'  # how Intel's answers begin
_QE_IDENTITY: Final = b'{"enclaveIdentity":'

Status: TypeAlias = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]
Svn: TypeAlias = Annotated[int, Field(ge=0, le=0xFFFF, strict=True)]


def _hex(size: int) -> StringConstraints:
    return StringConstraints(pattern=rf"^[0-9A-Fa-f]{{{2 * size}}}$", to_lower=True)


class _Signed(BaseModel):
    """What Intel signs; members that it adds later are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Component(_Signed):
    """One SVN of a platform's TCB; for some, Intel says where it is updated and what it is of."""

    svn: Annotated[int, Field(ge=0, le=0xFF, strict=True)]
    category: Annotated[str, Field(max_length=256)] = ""
    type: Annotated[str, Field(max_length=256)] = ""


class PlatformTcb(_Signed):
    """What a platform must reach at least."""

    sgxtcbcomponents: Annotated[tuple[Component, ...], Field(min_length=16, max_length=16)]
    pcesvn: Svn
    tdxtcbcomponents: Annotated[tuple[Component, ...], Field(min_length=16, max_length=16)] | None = None


class IsvTcb(_Signed):
    """What a signed module or enclave must reach at least."""

    isvsvn: Svn


class _Level(_Signed):
    tcbDate: AwareDatetime  # noqa: N815 - Intel's names
    tcbStatus: Status  # noqa: N815
    advisoryIDs: Annotated[tuple[str, ...], Field(max_length=MAX_LEVELS)] = ()  # noqa: N815


class PlatformLevel(_Level):
    """A level of the platform: the first that it reaches is its own."""

    tcb: PlatformTcb


class IsvLevel(_Level):
    """A level of the TDX module or of the quoting enclave."""

    tcb: IsvTcb


class TdxModule(_Signed):
    """Who signs TDX modules, and with which attributes."""

    mrsigner: Annotated[str, _hex(48)]
    attributes: Annotated[str, _hex(8)]
    attributesMask: Annotated[str, _hex(8)]  # noqa: N815


class TdxModuleIdentity(TdxModule):
    """One major version of the TDX module ("TDX_01") and its levels."""

    id: str
    tcbLevels: Annotated[tuple[IsvLevel, ...], Field(max_length=MAX_LEVELS)]  # noqa: N815


class _Dated(_Signed):
    issueDate: AwareDatetime  # noqa: N815
    nextUpdate: AwareDatetime  # noqa: N815
    tcbEvaluationDataNumber: int  # noqa: N815


class TcbInfo(_Dated):
    """TCB info v3 of one FMSPC."""

    id: Literal["SGX", "TDX"]
    version: Literal[3]
    fmspc: Annotated[str, _hex(6)]
    pceId: Annotated[str, _hex(2)]  # noqa: N815
    tcbType: Literal[0]  # noqa: N815
    tdxModule: TdxModule | None = None  # noqa: N815
    tdxModuleIdentities: Annotated[tuple[TdxModuleIdentity, ...], Field(max_length=MAX_LEVELS)] = ()  # noqa: N815
    tcbLevels: Annotated[tuple[PlatformLevel, ...], Field(min_length=1, max_length=MAX_LEVELS)]  # noqa: N815


class QeIdentity(_Dated):
    """Identity v2 of a quoting enclave."""

    id: Literal["QE", "TD_QE"]
    version: Literal[2]
    miscselect: Annotated[str, _hex(4)]
    miscselectMask: Annotated[str, _hex(4)]  # noqa: N815
    attributes: Annotated[str, _hex(16)]
    attributesMask: Annotated[str, _hex(16)]  # noqa: N815
    mrsigner: Annotated[str, _hex(32)]
    isvprodid: Svn
    tcbLevels: Annotated[tuple[IsvLevel, ...], Field(min_length=1, max_length=MAX_LEVELS)]  # noqa: N815


@dataclass(frozen=True, slots=True)
class SignedText:
    """The exact text that was signed, the signature (r || s), and the chain that signed it, signer first."""

    text: str
    signature: bytes
    chain: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class Collateral:
    """All that is needed to judge the quotes of one FMSPC, unverified."""

    tcb_info: TcbInfo
    tcb_info_signed: SignedText
    qe_identity: QeIdentity
    qe_identity_signed: SignedText
    root_crl: x509.CertificateRevocationList
    pck_crls: tuple[x509.CertificateRevocationList, ...]

    @property
    def expires(self) -> datetime:
        """When the first of TCB info, QE identity and revocation lists is no longer in its time."""
        lists = [one.next_update_utc for one in (self.root_crl, *self.pck_crls) if one.next_update_utc is not None]
        return min([self.tcb_info.nextUpdate, self.qe_identity.nextUpdate, *lists])

    @property
    def ends(self) -> tuple[datetime, ...]:
        """When each part ends, the chains of the signers included."""
        chains = (*self.tcb_info_signed.chain, *self.qe_identity_signed.chain)
        return (self.expires, *(one.not_valid_after_utc for one in chains))

    @classmethod
    def parse(cls, bundle: bytes) -> Self:
        """Read one bundle in the JSON form of Intel's quote verification library; raises `InvalidRequestError`.

        Members: `tcb_info`, `qe_identity` (text), `tcb_info_signature`, `qe_identity_signature`, `root_ca_crl`,
        `pck_crl` (hex), `tcb_info_issuer_chain`, `qe_identity_issuer_chain` (PEM).
        """
        members = _object(bundle)
        tcb = SignedText(_text(members, "tcb_info"), _bytes(members, "tcb_info_signature"), _chain(members, "tcb_info"))
        qe = SignedText(
            _text(members, "qe_identity"), _bytes(members, "qe_identity_signature"), _chain(members, "qe_identity")
        )
        return cls(
            tcb_info=_model(TcbInfo, tcb.text),
            tcb_info_signed=tcb,
            qe_identity=_model(QeIdentity, qe.text),
            qe_identity_signed=qe,
            root_crl=revocation_list(_bytes(members, "root_ca_crl")),
            pck_crls=(revocation_list(_bytes(members, "pck_crl")),),
        )


def parse_files(files: Sequence[bytes]) -> tuple[Collateral, ...]:
    """The collateral in `files`, of every FMSPC: bundles, and the pieces as Intel's service answers them.

    Pieces: TCB info and QE identity (JSON with its signature), chains of signers (PEM), revocation lists (DER or PEM).
    Of several QE identities or lists of one issuer the youngest counts. Raises `InvalidRequestError` for a file that is
    none of these, and for TCB info without the other pieces.
    """
    if len(files) > MAX_FILES:
        raise InvalidRequestError(f"collateral: expected at most {MAX_FILES} files, got {len(files)}")
    pieces = _Pieces.sorted_out(files)
    return (*pieces.bundles, *(pieces.collateral(info, text) for info, text in pieces.tcb_infos))


@dataclass(frozen=True, slots=True)
class _Pieces:
    bundles: tuple[Collateral, ...]
    tcb_infos: tuple[tuple[TcbInfo, SignedText], ...]
    qe_identities: tuple[tuple[QeIdentity, SignedText], ...]
    lists: tuple[x509.CertificateRevocationList, ...]
    signers: tuple[x509.Certificate, ...]

    @classmethod
    def sorted_out(cls, files: Sequence[bytes]) -> Self:
        bundles: list[Collateral] = []
        answers: list[tuple[str, str, bytes]] = []
        lists: list[x509.CertificateRevocationList] = []
        signers: list[x509.Certificate] = []
        for file in files:
            if len(file) > MAX_FILE_SIZE:
                raise InvalidRequestError(f"collateral: expected at most {MAX_FILE_SIZE} bytes, got {len(file)}")
            start = file.lstrip()
            if start.startswith((_TCB_INFO, _QE_IDENTITY)):
                answers.append(_answer(start))
            elif start.startswith(b"{"):
                bundles.append(Collateral.parse(file))
            elif start.startswith(b"-----BEGIN CERTIFICATE"):
                signers.extend(certificates(file))
            else:
                lists.append(revocation_list(file))
        chain = tuple(signers)
        signed = [(kind, SignedText(text, signature, chain)) for kind, text, signature in answers]
        return cls(
            tuple(bundles),
            tuple((_model(TcbInfo, one.text), one) for kind, one in signed if kind == "tcbInfo"),
            tuple((_model(QeIdentity, one.text), one) for kind, one in signed if kind == "enclaveIdentity"),
            tuple(lists),
            chain,
        )

    def collateral(self, info: TcbInfo, signed: SignedText) -> Collateral:
        wanted = "TD_QE" if info.id == "TDX" else "QE"
        identities = sorted((p for p in self.qe_identities if p[0].id == wanted), key=lambda pair: pair[0].issueDate)
        youngest = sorted(self.lists, key=lambda one: one.last_update_utc, reverse=True)
        roots = [one for one in youngest if self.signers and one.issuer == self.signers[-1].subject]
        if not identities or not roots or not self.signers:
            missing = [f"the QE identity {wanted}"] * (not identities) + ["the signers' chain"] * (not self.signers)
            missing += ["the root's revocation list"] * (not roots)
            raise InvalidRequestError(
                f"collateral of FMSPC {info.fmspc}: expected it whole, got it without {' and '.join(missing)}"
            )
        lists = {one.issuer: one for one in reversed(youngest) if one not in roots}
        return Collateral(info, signed, *identities[-1], roots[0], tuple(lists.values()))


def signed_answer(data: bytes) -> tuple[TcbInfo | QeIdentity, str, bytes]:
    """Read TCB info or a QE identity as Intel's service answers it: value, the exact text that is signed, signature.

    Raises `InvalidRequestError`.
    """
    if len(data) > MAX_FILE_SIZE:
        raise InvalidRequestError(f"collateral: expected at most {MAX_FILE_SIZE} bytes, got {len(data)}")
    if not data.startswith((_TCB_INFO, _QE_IDENTITY)):
        raise InvalidRequestError("collateral: expected an answer of Intel's service, got something else")
    kind, text, signature = _answer(data)
    value = _model(TcbInfo, text) if kind == "tcbInfo" else _model(QeIdentity, text)
    return value, text, signature


def revocation_list(data: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list in DER or PEM; raises `InvalidRequestError`."""
    if len(data) > MAX_FILE_SIZE:
        raise InvalidRequestError(f"revocation list: expected at most {MAX_FILE_SIZE} bytes, got {len(data)}")
    try:
        is_pem = data.lstrip().startswith(b"-----BEGIN")
        found = x509.load_pem_x509_crl(data) if is_pem else x509.load_der_x509_crl(data)
        # Parsed late by the library; what is malformed fails here.
        _ = found.issuer, found.extensions, found.last_update_utc, found.next_update_utc
    except MALFORMED as error:
        raise InvalidRequestError(f"revocation list: expected one in DER or PEM, got {error}") from error
    if len(found) > MAX_REVOKED:
        raise InvalidRequestError(f"revocation list: expected at most {MAX_REVOKED} entries, got {len(found)}")
    return found


def _answer(data: bytes) -> tuple[str, str, bytes]:
    """Kind, signed text and signature of `{"<kind>":<text>,"signature":"<hex>"}`: exactly so, it is signed text."""
    try:
        whole = data.rstrip().decode()
        kind = whole[2 : whole.index('"', 2)]
        begin = len(kind) + 4
        _, end = json.JSONDecoder().raw_decode(whole, begin)
        rest = json.loads("{" + whole[end:].removeprefix(","))
        if set(rest) != {"signature"}:
            raise ValueError(f"members {sorted(rest)} behind {kind}")
        return kind, whole[begin:end], bytes.fromhex(rest["signature"])
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(f"collateral: expected an answer of Intel's service, got {error}") from error


def _object(data: bytes) -> Mapping[str, object]:
    if len(data) > MAX_FILE_SIZE:
        raise InvalidRequestError(f"collateral: expected at most {MAX_FILE_SIZE} bytes, got {len(data)}")
    try:
        members = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"collateral: expected JSON, got {error}") from error
    if not isinstance(members, dict):
        raise InvalidRequestError(f"collateral: expected a JSON object, got {type(members).__name__}")
    return members


def _text(members: Mapping[str, object], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"collateral: expected text as {name}, got {type(value).__name__}")
    return value


def _bytes(members: Mapping[str, object], name: str) -> bytes:
    try:
        return bytes.fromhex(_text(members, name))
    except ValueError as error:
        raise InvalidRequestError(f"collateral: expected hex as {name}, got {error}") from error


def _chain(members: Mapping[str, object], name: str) -> tuple[x509.Certificate, ...]:
    return certificates(_text(members, f"{name}_issuer_chain").encode())


def _model(model: type[_Model], text: str) -> _Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:8])
        raise InvalidRequestError(
            f"collateral: expected {model.__name__}, got members that do not fit: {problems}"
        ) from error
