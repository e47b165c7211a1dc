"""Which security version numbers of a machine are short, and what each better level needs. Pure.

Intel lists levels, best first, with a status, a date and the advisories that stand at each; a machine has the first
that it reaches in everything (verifiers/dcap_tcb.py asks the same of quotes). AMD lists nothing: there, floors are
compared with, and the best TCB for which a certificate of the same chip is known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hermetic.attestation.abi.dcap_collateral import (
    Component,
    IsvLevel,
    PlatformLevel,
    QeIdentity,
    Status,
    TcbInfo,
)
from hermetic.attestation.collateral.items import Answer, Item
from hermetic.attestation.collateral.machines import Dcap, Machine, Snp

NAMES: Final = ("bootloader", "tee", "snp", "microcode", "fmc")
"""Components of AMD's TCB in the order in which it is written."""
Floors = Mapping[str, Mapping[str, int]]
"""Generation -> component -> the least number that a policy accepts."""


@dataclass(frozen=True, slots=True)
class Short:
    """One number that is too low."""

    component: str
    has: int
    needs: int


@dataclass(frozen=True, slots=True)
class Better:
    """A better state: who says so, what it takes, and which advisories no longer stand then."""

    level: str
    date: datetime | None
    short: tuple[Short, ...]
    advisories_gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Where one part of a machine stands, and what is better, the nearest first."""

    part: str
    status: str
    advisories: tuple[str, ...]
    better: tuple[Better, ...]


@dataclass(frozen=True, slots=True)
class _Level:
    status: Status
    date: datetime
    advisories: tuple[str, ...]
    wanted: tuple[Short, ...]  # every number, whether it is short or not

    @property
    def short(self) -> tuple[Short, ...]:
        return tuple(one for one in self.wanted if one.has < one.needs)


def shortfalls(machine: Machine, items: Sequence[Item], floors: Floors | None = None) -> tuple[Shortfall, ...]:
    """What of `machine` is not at the best level that `items`, and `floors` for AMD, know of."""
    found: list[Shortfall | None] = []
    if machine.dcap is not None:
        found += _dcap(machine.dcap, items)
    if machine.snp is not None:
        found.append(_snp(machine.snp, items, floors or {}))
    return tuple(one for one in found if one is not None)


def _dcap(machine: Dcap, items: Sequence[Item]) -> Iterable[Shortfall | None]:
    answers = [item.content.value for item in items if isinstance(item.content, Answer)]
    identity = "TD_QE" if machine.kind == "TDX" else "QE"
    for answer in answers:
        if isinstance(answer, TcbInfo) and (answer.id, answer.fmspc, answer.pceId) == (
            machine.kind,
            machine.fmspc,
            machine.pce_id,
        ):
            yield _standing("platform", [_platform(level, machine) for level in answer.tcbLevels])
            yield _module(answer, machine)
        elif isinstance(answer, QeIdentity) and answer.id == identity and machine.qe_svn is not None:
            yield _standing("quoting enclave", [_isv(level, machine.qe_svn) for level in answer.tcbLevels])


def _platform(level: PlatformLevel, machine: Dcap) -> _Level:
    tcb = level.tcb
    wanted = [*_components("SGX", bytes.fromhex(machine.cpu_svn), tcb.sgxtcbcomponents, 0)]
    wanted.append(Short("PCE", machine.pce_svn, tcb.pcesvn))
    if machine.tee_tcb_svn is not None:
        svns = bytes.fromhex(machine.tee_tcb_svn)
        # The first two are the module's own SVN and version: judged by its identity where there are several versions.
        wanted += _components("TDX", svns, tcb.tdxtcbcomponents or (), 2 if svns[1] > 0 else 0)
    return _Level(level.tcbStatus, level.tcbDate, level.advisoryIDs, tuple(wanted))


def _components(kind: str, has: bytes, needs: Sequence[Component], first: int) -> Iterable[Short]:
    for index, (own, component) in enumerate(zip(has, needs, strict=False)):
        if index >= first:
            words = ", ".join(word for word in (component.category, component.type) if word)
            yield Short(f"{kind} component {index + 1}" + (f" ({words})" if words else ""), own, component.svn)


def _module(info: TcbInfo, machine: Dcap) -> Shortfall | None:
    if machine.tee_tcb_svn is None:
        return None
    svn, version = bytes.fromhex(machine.tee_tcb_svn)[:2]
    name = f"TDX_{version:02X}"
    levels = next((one.tcbLevels for one in info.tdxModuleIdentities if one.id.upper() == name), ())
    return _standing(f"TDX module {name}", [_isv(level, svn) for level in levels]) if version else None


def _isv(level: IsvLevel, svn: int) -> _Level:
    return _Level(level.tcbStatus, level.tcbDate, level.advisoryIDs, (Short("SVN", svn, level.tcb.isvsvn),))


def _standing(part: str, levels: Sequence[_Level]) -> Shortfall | None:
    """Where a part stands among `levels`, best first; None for one that is at the best."""
    reached = next((index for index, level in enumerate(levels) if not level.short), None)
    if reached == 0 or not levels:
        return None
    own = None if reached is None else levels[reached]
    standing = () if own is None else own.advisories
    above = levels[:reached]
    return Shortfall(
        part,
        "below every listed level" if own is None else own.status,
        standing,
        tuple(
            Better(one.status, one.date, one.short, tuple(sorted(set(standing) - set(one.advisories))))
            for one in reversed(above)
        ),
    )


def _snp(machine: Snp, items: Sequence[Item], floors: Floors) -> Shortfall | None:
    has = _numbers(machine.tcb)
    wanted: list[tuple[str, Mapping[str, int]]] = []
    if machine.generation in floors:
        wanted.append(("floors of the policy", floors[machine.generation]))
    subjects = [item.subject.split(" ") for item in items if item.kind == "vcek"]
    best = [
        _numbers(tcb) for generation, chip, tcb in subjects if (generation, chip) == (machine.generation, machine.chip)
    ]
    if best:
        highest = max(best, key=lambda one: tuple(one.values()))
        wanted.append(("best TCB with a known VCEK of this chip", highest))
    better = []
    for level, needs in wanted:
        short = tuple(Short(name, has[name], needs[name]) for name in has if has[name] < needs.get(name, 0))
        if short:
            better.append(Better(level, None, short))
    return Shortfall("SNP firmware", machine.tcb, (), tuple(better)) if better else None


def _numbers(tcb: str) -> Mapping[str, int]:
    return dict(zip(NAMES, map(int, tcb.split(".")), strict=False))
