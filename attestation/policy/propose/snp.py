"""The table [snp] that known-good guests ask for."""

from collections.abc import Sequence
from typing import Final

from hermetic.attestation.claims import SnpClaims, SnpTcb
from hermetic.attestation.policy.propose.draft import ANY, Entry, Table, Value, seen, seen_or_none
from hermetic.attestation.policy.snp import MOMENTS, GuestPolicyForm, PlatformForm

_LOOSENING: Final = {"smt", "migrate_ma", "cxl_allow"}
"""Flags that let more in; the others keep something out."""


def snp_tables(captures: Sequence[SnpClaims]) -> tuple[Table, ...]:
    """The tables for exactly these guests."""
    entries = (*_machine(captures), *_guest(captures), *_who(captures))
    return (
        Table("snp", entries, "SEV-SNP guests. Each list holds exactly what was seen."),
        _flags(
            "guest_policy", GuestPolicyForm, [one.policy for one in captures], "What the guest's own policy allows."
        ),
        _flags("platform", PlatformForm, [one.platform for one in captures], "What the platform says of itself."),
        *(_floors(name, captures) for name in sorted({one.generation for one in captures})),
    )


def _machine(captures: Sequence[SnpClaims]) -> tuple[Entry, ...]:
    chips, providers = seen(one.chip_id for one in captures), seen(one.csp_id for one in captures)
    masked = "a chip's identifier is masked: this form cannot tell machines apart by it" if chips == ANY else ""
    return (
        Entry("chip_ids", chips, "Whose machine: the processors seen.", masked),
        Entry(
            "signed_by", seen(one.signed_by for one in captures), "VCEK: a chip's own key. VLEK: a cloud provider's."
        ),
        Entry("csp_ids", providers, "Whose VLEK; a VCEK has none."),
    )


def _guest(captures: Sequence[SnpClaims]) -> tuple[Entry, ...]:
    return (
        Entry(
            "measurement",
            seen(one.measurement for one in captures),
            "Launch digest: firmware, registers and, with measured direct boot, kernel, initrd and command line.",
        ),
        Entry(
            "measurement_covers_code",
            value=False,
            review="write true only if whatever these digests start measures all that it runs (dm-verity, say)",
        ),
        Entry(
            "host_data",
            seen(one.host_data for one in captures),
            "32 bytes that the host gave at launch.",
            'the host chooses it: "any", unless your tooling pins a configuration by it',
        ),
        Entry("id_key_digest", seen(one.id_key_digest for one in captures), "Zeros: the guest has no ID block."),
        Entry("author_key_digest", seen_or_none(one.author_key_digest for one in captures)),
        Entry("family_id", seen(one.family_id for one in captures)),
        Entry("image_id", seen(one.image_id for one in captures)),
        Entry("guest_svn", min(one.guest_svn for one in captures), "The least one seen."),
    )


def _who(captures: Sequence[SnpClaims]) -> tuple[Entry, ...]:
    levels = sorted({one.vmpl for one in captures})
    vectors = [one.current_mitigations for one in captures]
    common = [int(one, 16) for one in vectors if one is not None]
    mask = ANY
    if len(common) == len(vectors):
        bits = common[0]
        for one in common:
            bits &= one
        mask = f"{bits:016x}"
    least = min((one.abi for one in captures), key=lambda text: tuple(map(int, text.split("."))))
    return (
        Entry("vmpl", levels, "Privilege level of who asked for the report; 0 is the highest."),
        Entry("migration_agent", seen_or_none(one.migration_agent for one in captures)),
        Entry("abi", least, "The least firmware ABI that the guests' policies demand."),
        Entry(
            "mitigations",
            mask,
            "Bits of the mitigation vector that were set in every report; versions below 5 say none.",
        ),
    )


def _flags(
    name: str, form: type[GuestPolicyForm | PlatformForm], captures: Sequence[tuple[str, ...]], comment: str
) -> Table:
    entries = []
    for field in form.model_fields:
        flag = field.replace("_", "-")
        wish = "forbidden" if field in _LOOSENING else "required"
        is_met = all((flag in got) == (wish == "required") for got in captures)
        entries.append(Entry(field, wish if is_met else ANY))
    return Table(f"snp.{name}", tuple(entries), comment)


def _floors(generation: str, captures: Sequence[SnpClaims]) -> Table:
    own = [one for one in captures if one.generation == generation]
    entries = tuple(Entry(moment, _least([getattr(one, f"{moment}_tcb") for one in own])) for moment in MOMENTS)
    return Table(f"snp.tcb.{generation}", entries, f"Least security versions of {generation}: the least ones seen.")


def _least(tcbs: Sequence[SnpTcb]) -> dict[str, Value]:
    names = [name for name in SnpTcb.model_fields if getattr(tcbs[0], name) is not None]
    return {name: min(getattr(one, name) for one in tcbs) for name in names}
