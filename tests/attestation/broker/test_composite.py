"""A processor with its GPUs at a running broker: what is whole is genuine, each manipulation is refused by its name."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from string import Template
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from hermetic.attestation.attesters.composite import CompositeAttester, CompositeEvidence
from hermetic.attestation.evidence import canonical, device_report_data, report_data
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.errors import BrokerRefusedError
from tests.attestation.broker.independent_guest import hermetic_claims, make_key
from tests.attestation.broker.world import InThread, World, lease_key_of
from tests.attestation.machines import Machine, chip_name, device_name, vendor_of_now, write_roots
from tests.attestation.verifiers.nvgpu_made import Vendor

POLICY = """
format = "hermetic-appraisal-policy/1"
name = "composite"
models = ["composite"]
profile = "demo"
kinds = ["snp", "nvgpu"]
allow_unmeasured_code = true
client_certificate = "required"
allow_any_machine = false
[hermetic]
required = true
manifest_digest = "any"
trusted_publishers = "any"
waivers = "any"
zeroing = "any"
"""
CONFIG = {"[[plain_secrets]]": '[[policies]]\nfile = "composite.toml"\n[[plain_secrets]]'}
ROOTS = {"[key_store]": '[roots]\namd = "roots/amd"\nnvidia = "roots/nvidia"\n[key_store]'}


@pytest.fixture(scope="module")
def vendor() -> Vendor:
    return vendor_of_now()


@pytest.fixture(scope="module")
def here(vendor: Vendor) -> Machine:
    return Machine("here", [vendor.chip(), vendor.chip()])


@pytest.fixture(scope="module")
def elsewhere(vendor: Vendor) -> Machine:
    return Machine("elsewhere", [vendor.chip(), vendor.chip()])


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, vendor: Vendor, here: Machine) -> Iterator[InThread]:
    world = World(tmp_path_factory.mktemp("composite"))
    write_roots(world.folder / "roots", vendor)
    world.write_config(change=CONFIG | ROOTS)
    (world.folder / "composite.toml").write_text(POLICY + tables(here))
    with world.start() as running:
        running.upload(RESOURCE, KEY, "composite", digest=DIGEST)
        yield running


def tables(machine: Machine) -> str:
    """The tables [snp] and [nvgpu] of a form that takes this machine, and no other."""
    templates = resources.files("hermetic.provision") / "templates"
    snp = Template((templates / "policy-snp.toml").read_text()).substitute(measurement='"any"', measured="false")
    nvgpu = Template((templates / "policy-nvgpu.toml").read_text()).substitute(manifests='"any"')
    chips = json.dumps([device_name(chip) for chip in machine.gpus])
    for old, new in (
        ('chip_ids = "any"', f'chip_ids = ["{chip_name(machine.label)}"]'),
        ('\ngpus = "any"', f"\ngpus = {len(machine.gpus)}"),
        ('devices = "any"', f"devices = {chips}"),
    ):
        assert old in snp + nvgpu
        snp, nvgpu = snp.replace(old, new), nvgpu.replace(old, new)
    return snp + nvgpu


RESOURCE = "models/composite/1"
KEY, DIGEST = bytes(range(32)), b"\5" * 32


@dataclass(frozen=True)
class Session:
    """One challenge and key, and evidence over it."""

    nonce: str
    key: dict[str, Any]

    def collect(self, attester: CompositeAttester, additional: str | None = None) -> CompositeEvidence:
        """Evidence of a machine; with `additional`, its primary's is over that text instead of its devices'."""
        return attester.collect(
            device_report_data(self.nonce, self.key),
            lambda own: report_data(
                self.nonce, self.key, additional_evidence=own if additional is None else additional
            ),
        )

    def bound(self, machine: Machine, devices: Any) -> CompositeEvidence:
        """A guest that includes these devices' evidence as its own: bound to nonce and key, whatever it is."""
        text = canonical({"nvidia": devices}).decode()
        return replace(self.collect(CompositeAttester(machine.primary), text), additional=text)

    def devices(self, machine: Machine) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.collect(machine.attester).additional)["nvidia"]
        return found


def attest(broker: InThread, make: Callable[[Session], CompositeEvidence]) -> str:
    with broker.guest() as guest:
        challenge = guest.challenge("snp")
        session = Session(challenge.nonce, make_key("P-256")[1])
        made = make(session)
        public = {**session.key}
        return guest.attest(challenge, public, made.primary, additional_evidence=made.additional)


def refusals(broker: InThread, make: Callable[[Session], CompositeEvidence]) -> set[str]:
    """The names of the checks that failed, as the broker's record has them."""
    with pytest.raises(BrokerRefusedError, match="AttestationError"):
        attest(broker, make)
    record = [one for one in broker.world.records() if one.kind == "broker.attest"][-1]
    assert record.fields["outcome"] == "refused"
    reasons = record.fields["reasons"]
    assert isinstance(reasons, list)
    return {str(reason).partition(":")[0] for reason in reasons}


def test_a_whole_machine_is_genuine(broker: InThread, here: Machine) -> None:
    token = attest(broker, lambda session: session.collect(here.attester))
    record = broker.world.records()[-1]
    assert record.fields["outcome"] == "genuine"
    claims = record.fields["claims"]
    assert isinstance(claims, Mapping)
    kinds: Any = claims["kinds"]
    assert [kind["kind"] for kind in kinds] == ["snp", "nvgpu"]
    assert len(kinds[1]["devices"]) == 2
    submods = jwt.decode(token, _key_of(token), algorithms=["ES256"]).claims["submods"]
    assert set(submods) == {"cpu0", "gpu0"}
    told = {name: one["ear.veraison.annotated-evidence"]["report_data"] for name, one in submods.items()}
    assert told["cpu0"] != told["gpu0"], "each says what it is over"


def _key_of(token: str) -> ECKey:
    return ECKey.import_key(json.loads(base64.urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))["jwk"])


def test_a_gpu_for_another_nonce_is_refused(broker: InThread, here: Machine, elsewhere: Machine) -> None:
    other = Session("b3RoZXI=", make_key("P-256")[1])
    foreign = other.devices(elsewhere)

    def make(session: Session) -> CompositeEvidence:
        devices = session.devices(here)
        devices["device_evidence_list"][1] = foreign["device_evidence_list"][1]
        return session.bound(here, devices)

    assert refusals(broker, make) == {"nvgpu.1.report.nonce"}


def test_devices_swapped_between_two_machines_are_refused(broker: InThread, here: Machine, elsewhere: Machine) -> None:
    other = Session("b3RoZXI=", make_key("P-256")[1]).collect(elsewhere.attester)

    def make(session: Session) -> CompositeEvidence:
        return replace(session.collect(here.attester), additional=other.additional)

    wanted = {"snp.report_data", "composite.bound", "nvgpu.0.report.nonce", "nvgpu.1.report.nonce"}
    assert refusals(broker, make) == wanted


def test_another_machines_processor_beside_these_gpus_is_refused(
    broker: InThread, here: Machine, elsewhere: Machine
) -> None:
    def make(session: Session) -> CompositeEvidence:
        primary = session.collect(elsewhere.attester).primary
        return replace(session.collect(here.attester), primary=primary)

    assert refusals(broker, make) == {"snp.report_data", "composite.bound"}


def _without_last(devices: dict[str, Any]) -> None:
    devices["device_evidence_list"].pop()


def _first_twice(devices: dict[str, Any]) -> None:
    devices["device_evidence_list"][1] = devices["device_evidence_list"][0]


def _with_another(devices: dict[str, Any]) -> None:
    devices["hermetic"]["gpus"] = 1


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (_without_last, {"nvgpu.count"}),
        (_with_another, {"nvgpu.count"}),
        (_first_twice, {"nvgpu.distinct", "nvgpu.distinct_keys"}),
        (lambda devices: devices["hermetic"].update(cc="off"), {"nvgpu.cc"}),
        (lambda devices: devices["hermetic"].update(devtools="on"), {"nvgpu.devtools"}),
        (lambda devices: devices["hermetic"].update(environment="simulation"), {"nvgpu.environment"}),
        (lambda devices: devices.update(device_evidence_list=[]), {"nvgpu.structure"}),
    ],
    ids=["missing", "extra", "twice", "cc-off", "devtools", "simulation", "none"],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before hashing", "after hashing"])
def test_a_changed_set_is_refused(
    broker: InThread, here: Machine, change: Callable[[dict[str, Any]], None], fails: set[str], when: str
) -> None:
    """Before hashing: a guest that lies about what it has. After: someone on the way."""

    def make(session: Session) -> CompositeEvidence:
        devices = session.devices(here)
        change(devices)
        if when == "before hashing":
            return session.bound(here, devices)
        return replace(session.collect(here.attester), additional=canonical({"nvidia": devices}).decode())

    wanted = fails if when == "before hashing" else fails | {"snp.report_data", "composite.bound"}
    assert refusals(broker, make) == wanted


def test_one_letter_of_the_text_is_enough(broker: InThread, here: Machine) -> None:
    def make(session: Session) -> CompositeEvidence:
        made = session.collect(here.attester)
        return replace(made, additional=made.additional + " ")

    assert refusals(broker, make) == {"snp.report_data", "composite.bound"}


def test_devices_cannot_be_left_out_on_the_way(broker: InThread, here: Machine) -> None:
    assert refusals(broker, lambda session: replace(session.collect(here.attester), additional="")) == {
        "snp.report_data"
    }


@pytest.mark.parametrize("kind", ["snp", "sample", "tpm", "sampledevice"])
def test_only_devices_come_beside_the_primary(broker: InThread, here: Machine, elsewhere: Machine, kind: str) -> None:
    """Else two machines could make one: a good TPM's quote beside any processor's report."""

    def make(session: Session) -> CompositeEvidence:
        maker = elsewhere.primary if kind == "snp" else SampleAttester()
        evidence = maker.collect(device_report_data(session.nonce, session.key).ljust(64, b"\0"))
        text = canonical({kind: evidence}).decode()
        return replace(session.collect(CompositeAttester(here.primary), text), additional=text)

    assert refusals(broker, make) == {"composite.kinds"}


@pytest.mark.parametrize("text", ["[]", "{", '{"nvidia":1,"nvidia":2}', '"nvidia"'])
def test_a_text_that_is_no_object_is_refused(broker: InThread, here: Machine, text: str) -> None:
    def make(session: Session) -> CompositeEvidence:
        return replace(session.collect(CompositeAttester(here.primary), text), additional=text)

    (name,) = refusals(broker, make)
    assert name.startswith("additional_evidence")


def test_a_gpu_alone_speaks_for_no_machine(broker: InThread) -> None:
    with broker.guest() as guest, pytest.raises(BrokerRefusedError, match=r"tee: expected .*snp.*, got nvidia"):
        guest.challenge("nvidia")


def test_gpus_of_another_vendor_are_refused(broker: InThread) -> None:
    stranger = Machine("here", [vendor_of_now().chip()])
    assert refusals(broker, lambda session: session.collect(stranger.attester)) == {"nvgpu.0.chain"}


def test_a_broker_without_roots_says_so(tmp_path_factory: pytest.TempPathFactory, here: Machine) -> None:
    with World(tmp_path_factory.mktemp("rootless")).start() as rootless, rootless.guest() as guest:
        with pytest.raises(BrokerRefusedError, match="tee: expected sample, tpm, got snp"):
            guest.challenge("snp")
        challenge = guest.challenge("sample")
        session = Session(challenge.nonce, make_key("P-256")[1])
        made = session.collect(CompositeAttester(SampleAttester(), [here.devices]))
        with pytest.raises(BrokerRefusedError, match=r"composite\.kinds: .* no roots of any"):
            guest.attest(challenge, session.key, made.primary, additional_evidence=made.additional)


def release(broker: InThread, machine: Machine) -> set[str]:
    """Ask for the key as this machine, honest about what it has; the names of the checks that speak against it."""
    with broker.guest() as guest:
        challenge = guest.challenge("snp")
        public, hermetic = make_key("P-256")[1], hermetic_claims(DIGEST, **lease_key_of(guest))
        made = machine.attester.collect(
            device_report_data(challenge.nonce, public),
            lambda text: report_data(challenge.nonce, public, additional_evidence=text, hermetic=hermetic),
        )
        guest.attest(challenge, public, made.primary, hermetic, additional_evidence=made.additional)
        try:
            guest.resource(RESOURCE)
        except BrokerRefusedError as error:
            assert "PolicyDeny" in str(error)  # noqa: PT017 - it may also succeed
    record = broker.world.records()[-1]
    assert record.kind == "broker.release"
    reasons = record.fields["reasons"]
    assert isinstance(reasons, list)
    assert record.fields["outcome"] == ("refused" if reasons else "released")
    return {str(reason).partition(":")[0] for reason in reasons}


def test_the_machine_of_the_policy_gets_the_key(broker: InThread, here: Machine) -> None:
    assert release(broker, here) == set()


def test_each_other_machine_is_refused_by_name(broker: InThread, here: Machine, elsewhere: Machine) -> None:
    first, second = here.gpus
    assert release(broker, Machine("here", [first])) == {"nvgpu.gpus"}
    assert release(broker, Machine("here", [first, second, elsewhere.gpus[0]])) == {"nvgpu.gpus", "nvgpu.devices"}
    assert release(broker, Machine("here", [first, elsewhere.gpus[0]])) == {"nvgpu.devices"}
    assert release(broker, Machine("here", [])) == {"kinds.nvgpu"}
    assert release(broker, Machine("elsewhere", here.gpus)) == {"snp.chip_id"}
    assert release(broker, elsewhere) == {"snp.chip_id", "nvgpu.devices"}
