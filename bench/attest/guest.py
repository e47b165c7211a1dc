"""A guest of the broker for measuring rates: real evidence in every byte but who signs the quote.

A software TPM makes some 50 quotes a second on this kind of machine, so a broker's rate cannot be measured with one.
This guest takes what a real (software) TPM has quoted, puts the challenge into it, and signs it with a key of its own
that the installation's AK CA has certified: for the broker the work is the same.
"""

import base64
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from hermetic.attestation.abi.ak_certificate import EnrolledBoot
from hermetic.attestation.abi.tpm import Alg, Attest, Public, Signature, endorsement_name
from hermetic.attestation.enrolment import AkCa, issue
from hermetic.attestation.evidence import JsonObject, JsonValue, fit_to, report_data
from hermetic.attestation.lease import ec_jwk
from hermetic.errors import MeasurementError

KEY_AGREEMENT = "ECDH-ES+A256KW"
TIMEOUT_S = 60
READ_BYTES = 64 * 1024
_P256_BYTES = 32


@dataclass(frozen=True, slots=True)
class QuickQuotes:
    """Makes evidence of kind `tpm` without a TPM: `evidence` is a real one's, with our AK in it."""

    evidence: Mapping[str, Any]
    attest: Attest
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def like(cls, evidence: Mapping[str, Any], authority: Path, stem: str = "ak-ca") -> Self:
        """Take over what a real TPM gave; the AK CA's files lie in `authority`."""
        certificate = x509.load_pem_x509_certificate((authority / f"{stem}.pem").read_bytes())
        ca_key = cast(ec.EllipticCurvePrivateKey, load_pem_private_key((authority / f"{stem}.key").read_bytes(), None))
        additions = evidence["hermetic"]
        key = ec.generate_private_key(ec.SECP256R1())
        numbers = key.public_key().public_numbers()
        public = Public.parse(base64.b64decode(additions["ak_public_area"]))
        point = tuple(value.to_bytes(_P256_BYTES, "big") for value in (numbers.x, numbers.y))
        public = replace(public, unique=point)
        real = x509.load_der_x509_certificate(base64.b64decode(additions["ak_certificate"][0]))
        issued = issue(
            public, replace(EnrolledBoot.of(real), ak_name=public.name()), AkCa(certificate, ca_key), datetime.now(UTC)
        )
        chain = [issued.public_bytes(Encoding.DER), *map(base64.b64decode, additions["ak_certificate"][1:])]
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ours = {**additions, "ak_certificate": list(map(_b64, chain)), "ak_public_area": _b64(public.pack())}
        message = base64.b64decode(evidence["tpm_quote"]["message"])
        attest = replace(Attest.parse(message), qualified_signer=endorsement_name(public.name()))
        return cls({**evidence, "ak_public": _b64(spki), "hermetic": ours}, attest, key)

    def to_json(self) -> dict[str, Any]:
        """For a caller's process."""
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return {"evidence": self.evidence, "attest": self.attest.pack().hex(), "key": pem}

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        key = cast(ec.EllipticCurvePrivateKey, load_pem_private_key(members["key"].encode(), None))
        return cls(members["evidence"], Attest.parse(bytes.fromhex(members["attest"])), key)

    def collect(self, binding: bytes) -> JsonValue:
        """Evidence over the report data."""
        message = replace(self.attest, extra_data=binding).pack()
        signed = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        numbers = tuple(number.to_bytes(_P256_BYTES, "big") for number in signed)
        signature = Signature(Alg.ECDSA, Alg.SHA256, numbers).pack()
        quote = {**self.evidence["tpm_quote"], "message": _b64(message), "signature": _b64(signature)}
        return {**self.evidence, "tpm_quote": quote}


class Guest:
    """Whole handshakes, each over a connection of its own.

    As servers make them: a broker closes idle connections before the next renewal is due.
    """

    def __init__(self, port: int, tls: ssl.SSLContext, quotes: QuickQuotes, hermetic: JsonObject, path: str) -> None:
        """Ask the broker at `port` of localhost for the resource `path`."""
        with socket.create_connection(("localhost", port)) as probe:
            self._family, self._address = probe.family, probe.getpeername()
        self._tls = tls
        self._quotes = quotes
        self._hermetic = dict(hermetic)
        self._path = path

    def handshake(self) -> None:
        """Challenge, evidence, key; raises `MeasurementError` where one is refused."""
        with socket.socket(self._family) as raw:
            raw.settimeout(TIMEOUT_S)
            raw.connect(self._address)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._tls.wrap_socket(raw, server_hostname="localhost") as connection:
                self._talk(connection)

    def _talk(self, connection: ssl.SSLSocket) -> None:
        body = {"version": "0.4.0", "tee": "tpm", "extra-params": {"hermetic": {"version": 1}}}
        answer, cookie = _ask(connection, "POST", "/kbs/v0/auth", body)
        public = public_jwk(ec.generate_private_key(ec.SECP256R1()))
        binding = report_data(answer["nonce"], public, additional_evidence="", hermetic=self._hermetic)
        evidence = self._quotes.collect(fit_to("tpm", binding))
        runtime = {"nonce": answer["nonce"], "tee-pubkey": public, "hermetic": self._hermetic}
        made = {"primary_evidence": evidence, "additional_evidence": ""}
        attestation = {"init-data": None, "runtime-data": runtime, "tee-evidence": made}
        answer, _ = _ask(connection, "POST", "/kbs/v0/attest", attestation, cookie)
        key, _ = _ask(connection, "GET", f"/kbs/v0/resource/{self._path}", None, cookie)
        if "token" not in answer or "ciphertext" not in key:
            raise MeasurementError(f"broker: wanted a token and a key, got {sorted(answer)} and {sorted(key)}")


def _ask(
    connection: ssl.SSLSocket, method: str, path: str, body: object, cookie: str = ""
) -> tuple[dict[str, Any], str]:
    """One request; the answer's JSON, and its cookie. No HTTP library: it would cost the broker's cores more."""
    content = b"" if body is None else json.dumps(body).encode("ascii")
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(content)}"]
    lines += [f"cookie: {cookie}"] if cookie else []
    connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + content)
    data = _more(connection)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection)
    status, *fields = data[:end].decode("ascii").split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    whole = end + len(b"\r\n\r\n") + int(headers["content-length"])
    while len(data) < whole:
        data += _more(connection)
    answer = data[whole - int(headers["content-length"]) : whole]
    if status.split(" ")[1] != "200":
        raise MeasurementError(f"{method} {path}: wanted 200, got {status}: {answer[:400]!r}")
    return json.loads(answer), headers.get("set-cookie", "").partition(";")[0]


def _more(connection: ssl.SSLSocket) -> bytes:
    data = connection.recv(READ_BYTES)
    if not data:
        raise MeasurementError("broker: wanted an answer, got the end of the connection")
    return data


def public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """The public half as a guest sends it."""
    return ec_jwk(key.public_key()) | {"alg": KEY_AGREEMENT}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
