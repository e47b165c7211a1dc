"""Evidence of kinds tdx and sgx as it travels (docs/spec/tdx-evidence.md): JSON -> bytes; no verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from hermetic.attestation.abi import ccel
from hermetic.attestation.abi.dcap import MAX_QUOTE_SIZE, Quote
from hermetic.attestation.abi.members import base64_member
from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.abi.tcg_event_log import EventLog
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import InvalidRequestError

_Report = TypeVar("_Report", EnclaveReport, TdReport)


@dataclass(frozen=True, slots=True)
class DcapEvidence:
    """A quote and, of a TDX domain, the firmware's event log."""

    raw: bytes
    quote: Quote
    event_log: EventLog | None

    @classmethod
    def parse(cls, evidence: JsonValue) -> Self:
        """Read `{"quote", "cc_eventlog"}`, or `{"quote"}` alone; raises `InvalidRequestError`."""
        if not isinstance(evidence, Mapping) or not {"quote"} <= set(evidence) <= {"quote", "cc_eventlog"}:
            raise InvalidRequestError("evidence: expected a JSON object of quote and cc_eventlog, got another")
        raw = base64_member(evidence, "quote", MAX_QUOTE_SIZE)
        quote = Quote.parse(raw)
        if evidence.get("cc_eventlog") is None:
            return cls(raw, quote, None)
        return cls(raw, quote, ccel.parse_ccel(base64_member(evidence, "cc_eventlog", ccel.MAX_LOG_SIZE)))

    def report(self, kind: type[_Report]) -> _Report:
        """The quote's body, which must be of `kind`; raises `InvalidRequestError`."""
        body = self.quote.body
        if not isinstance(body, kind):
            raise InvalidRequestError(
                f"quote: expected a {kind.__name__}, got one of TEE type {self.quote.header.tee_type:#x}"
            )
        return body
