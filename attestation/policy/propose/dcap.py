"""The tables [tdx] and [sgx] that known-good domains and enclaves ask for."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from hermetic.attestation.claims import PlatformClaims, SgxClaims, TcbClaims, TdxClaims
from hermetic.attestation.policy.propose.draft import ANY, Entry, Table, Value, if_all, seen
from hermetic.errors import AppraisalError, FailedCheck

GRACE: Final = timedelta(days=90)
"""How long a status that is not UpToDate, or an advisory, is accepted by a proposed form."""
_GOOD: Final = "UpToDate"
_REGISTERS: Final = {
    "mr_seam": "The TDX module; a new one with each of Intel's updates.",
    "mr_td": "The domain as it was built: its firmware.",
    "mr_config_id": "Given by whoever started the domain.",
    "mr_owner": "",
    "mr_owner_config": "",
}
_RTMRS: Final = (
    "Firmware's configuration: also the machine's size.",
    "What the firmware started: boot loader, kernel.",
    "What the boot loader started: command line, initrd.",
    "Extended by the system that runs.",
)


def tdx_tables(captures: Sequence[TdxClaims], time: datetime) -> tuple[Table, ...]:
    """The tables for exactly these domains, captured at `time`."""
    services = {one.mr_service_td for one in captures}
    if all(one is not None and not one.strip("0") for one in services):
        service: Value = "none"
    else:
        service = seen(one.mr_service_td for one in captures)
    old = "TD 1.0 reports do not say whether a service domain is bound" if service == ANY else ""
    attributes = sorted({name for one in captures for name in one.attributes} - {"SEPT_VE_DISABLE"})
    roots = [root for one in captures for root in ((one.measured_code and one.measured_code.root_hashes) or (None,))]
    sept = if_all(captures, lambda one: one.sept_ve_disable)
    entries = (
        *_machine([one.platform for one in captures]),
        *(Entry(name, seen(getattr(one, name) for one in captures), text) for name, text in _REGISTERS.items()),
        *(Entry(f"rtmr{i}", seen(one.rtmrs[i] for one in captures), text) for i, text in enumerate(_RTMRS)),
        Entry("service_td", service, "A service domain can act on this one: migrate it, say.", old),
        Entry(
            "sept_ve_disable",
            sept,
            review="not set: the host can inject exceptions by taking pages away" if sept == ANY else "",
        ),
        Entry("attributes", attributes, "What may be set beside SEPT_VE_DISABLE."),
        Entry("root_hashes", seen(roots), "dm-verity root hashes in the measured command line."),
        Entry("secure_boot", if_all(captures, lambda one: one.secure_boot is True)),
    )
    return (
        Table("tdx", entries, "TDX domains. Each list holds exactly what was seen."),
        _tcb("tdx", [one.platform.tcb for one in captures], time),
    )


def sgx_tables(captures: Sequence[SgxClaims], time: datetime) -> tuple[Table, ...]:
    """The tables for exactly these enclaves, captured at `time`."""
    products = {one.isv_prod_id for one in captures}
    product: Value = products.pop() if len(products) == 1 else ANY
    entries = (
        *_machine([one.platform for one in captures]),
        Entry("mr_enclave", seen(one.mr_enclave for one in captures), "The enclave as it was built."),
        Entry("mr_signer", seen(one.mr_signer for one in captures), "Who signed the enclave."),
        Entry("isv_prod_id", product, review="several were seen" if product == ANY else ""),
        Entry("isv_svn", min(one.isv_svn for one in captures), "The least one seen."),
        Entry("measurement_covers_code", value=False, review="write true only if the enclave loads no other code"),
    )
    return (
        Table("sgx", entries, "SGX enclaves. Each list holds exactly what was seen."),
        _tcb("sgx", [one.platform.tcb for one in captures], time),
    )


def _machine(platforms: Sequence[PlatformClaims]) -> tuple[Entry, ...]:
    on = sorted({name for one in platforms for name, is_on in one.configuration.items() if is_on})
    return (
        Entry(
            "machines",
            seen(one.instance_id or one.ppid for one in platforms),
            "Whose machine: platform instance ids, else PPIDs.",
        ),
        Entry("configuration", on, "What may be on of dynamic-platform, cached-keys, smt."),
    )


def _tcb(kind: str, tcbs: Sequence[TcbClaims | None], time: datetime) -> Table:
    given = [one for one in tcbs if one is not None]
    is_whole = len(given) == len(tcbs)
    if any(one.status == "Revoked" for one in given):
        raise AppraisalError([FailedCheck(f"{kind}.tcb.status", "a platform to take for good", "Revoked")])
    until = time + GRACE
    worse = sorted({one.status for one in given} - {_GOOD})
    standing = sorted({name for one in given for name in one.advisories})
    lapsing: list[Value] = [{"status": one, "until": until} for one in worse]
    advisories: list[Value] = [{"advisory": one, "until": until} for one in standing]
    late = f"accepted for {GRACE.days} days only: update the platform by then"
    entries = (
        Entry(
            "collateral",
            "required" if is_whole else "if-given",
            review="" if is_whole else "none was given with a capture: nobody knows how its platform stands",
        ),
        Entry("statuses", [_GOOD, *lapsing], "How Intel says that the platform stands.", late if worse else ""),
        Entry("advisories", advisories, "The only ones that may stand against it.", late if standing else ""),
        Entry(
            "evaluation_number",
            min(one.evaluation_number for one in given) if is_whole else ANY,
            "The least number of Intel's evaluation that was seen.",
        ),
    )
    return Table(f"{kind}.tcb", entries)
