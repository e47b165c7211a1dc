"""A form from captures that are known to be good: exact reference values, floors at what was seen, the machines seen.

One module per kind's table, as in the package around it; draft.py is what they share. What evidence cannot tell is
written as the stricter choice, or as "any" with the word REVIEW. The form is loaded and tried on every capture before
it is handed out. Not here: whether the captures are genuine, which their claims stand for.
"""

from collections.abc import Sequence
from datetime import datetime

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, NvGpuClaims, SgxClaims, SnpClaims, TdxClaims, TpmClaims
from hermetic.attestation.policy.explain import judge_stored
from hermetic.attestation.policy.form import FORMAT, KINDS, AppraisalPolicy
from hermetic.attestation.policy.propose.dcap import sgx_tables, tdx_tables
from hermetic.attestation.policy.propose.draft import ANY, Entry, Table, text_of
from hermetic.attestation.policy.propose.nvgpu import nvgpu_tables
from hermetic.attestation.policy.propose.snp import snp_tables
from hermetic.attestation.policy.propose.tpm import tpm_tables
from hermetic.errors import AppraisalError, InvalidRequestError

__all__ = ["propose"]

_HEADER = """# Proposed from {count} at {time:%Y-%m-%dT%H:%M:%SZ} (docs/spec/appraisal-policy.md).
# It accepts what was captured and nothing else. Read every line; those marked REVIEW need a decision of yours.
"""


def propose(captures: Sequence[Claims], name: str, models: Sequence[str], time: datetime) -> str:
    """The TOML of a form called `name` for `models` that accepts each of the genuine `captures`, made at `time`.

    Raises `AppraisalError` for captures that no form accepts (debug, sample, a revoked platform), `InvalidRequestError`
    where there are none or their kinds differ, `ConfigurationError` for a name or models that no form can have.
    """
    _demand_alike(captures)
    _demand_acceptable(captures)
    tables = _kind_tables(captures, time)
    head = _head(captures, name, models, names_machine=_names_machine(tables))
    count = "one capture" if len(captures) == 1 else f"{len(captures)} captures"
    text = _HEADER.format(count=count, time=time) + text_of((head, _HERMETIC, *tables))
    _try(text, captures, time)
    return text


def _demand_alike(captures: Sequence[Claims]) -> None:
    kinds = {tuple(sorted(kind.kind for kind in one.kinds)) for one in captures}
    if len(kinds) != 1:
        raise InvalidRequestError(
            f"captures: expected the same kinds of evidence in each, got {sorted(kinds) or 'none'}"
        )


def _demand_acceptable(captures: Sequence[Claims]) -> None:
    checks = Checks()
    for kind in (kind for one in captures for kind in one.kinds):
        checks.demand(f"{kind.kind}.debug", not kind.debug, "debug off", "debug on")
        checks.demand("kinds.sample", kind.kind != "sample", "evidence that proves something", kind.kind)
        devices = [one.device for one in kind.devices] if isinstance(kind, NvGpuClaims) else []
        # Stored reports need not answer one challenge: a chip may be there several times, from several days.
        checks.demand("nvgpu.distinct", len(set(devices)) == len(devices), "each device once", devices)
    checks.raise_failures(AppraisalError)


def _kind_tables(captures: Sequence[Claims], time: datetime) -> tuple[Table, ...]:
    every = [kind for one in captures for kind in one.kinds]
    tpm = [one for one in every if isinstance(one, TpmClaims)]
    snp = [one for one in every if isinstance(one, SnpClaims)]
    tdx = [one for one in every if isinstance(one, TdxClaims)]
    sgx = [one for one in every if isinstance(one, SgxClaims)]
    nvgpu = [one for one in every if isinstance(one, NvGpuClaims)]
    return (
        *(tpm_tables(tpm) if tpm else ()),
        *(snp_tables(snp) if snp else ()),
        *(tdx_tables(tdx, time) if tdx else ()),
        *(sgx_tables(sgx, time) if sgx else ()),
        *(nvgpu_tables(nvgpu) if nvgpu else ()),
    )


def _names_machine(tables: Sequence[Table]) -> bool:
    lists = {("tpm", "ek"), ("snp", "chip_ids"), ("tdx", "machines"), ("sgx", "machines")}
    written = [entry.value for table in tables for entry in table.entries if (table.name, entry.name) in lists]
    return any(value != ANY for value in written)


def _head(captures: Sequence[Claims], name: str, models: Sequence[str], *, names_machine: bool) -> Table:
    present = {kind.kind for one in captures for kind in one.kinds}
    is_measured = all(any(kind.code_measured for kind in one.kinds) for one in captures)
    is_software = any(one.tpm is not None and one.tpm.software for one in captures)
    return Table(
        "",
        (
            Entry("format", FORMAT),
            Entry("name", name),
            Entry("models", models, "Names of models, or patterns."),
            Entry(
                "profile",
                "demo" if is_software else "production",
                review="a software TPM proves the protocol, not hardware" if is_software else "",
            ),
            Entry("kinds", [kind for kind in KINDS if kind in present], "All of these, and nothing else."),
            Entry(
                "allow_unmeasured_code",
                not is_measured,
                "Whether a host is accepted of which nobody knows what it runs.",
                "no chain from boot in the evidence: false once a measurement covers the code"
                if not is_measured
                else "",
            ),
            Entry(
                "client_certificate",
                ANY if names_machine else "required",
                "Who may call: a list of identities is stricter. Stored evidence cannot tell.",
                "" if names_machine else "the evidence does not say whose machine it is: list the clients",
            ),
            Entry("allow_any_machine", value=False),
        ),
    )


_HERMETIC = Table(
    "hermetic",
    (
        Entry("required", value=True, review="false, with any below, for guests that are not Hermetic's"),
        Entry("manifest_digest", ANY, "A broker compares with the digest stored beside the key in any case."),
        Entry("trusted_publishers", ANY, review="pin it: `hermetic doctor --config server.toml` prints the digest"),
        Entry("waivers", (), "Isolation properties that a host may do without."),
        Entry("zeroing", "enforced"),
    ),
    "What a host says of itself when it asks for a key. Stored evidence has none of it.",
)


def _try(text: str, captures: Sequence[Claims], time: datetime) -> None:
    policy = AppraisalPolicy.load(text)
    for one in captures:
        checks = Checks()
        judge_stored(checks, one.with_hermetic(None).with_client(None), policy, time)
        checks.raise_failures(AppraisalError)
