"""A TDX domain with a GPU at a running broker: measured code is demanded, and its key is released to it alone."""

import json
from collections.abc import Iterator
from importlib import resources
from string import Template

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.evidence import device_report_data, report_data
from hermetic.errors import BrokerRefusedError
from tests.attestation.broker.independent_guest import hermetic_claims, make_key
from tests.attestation.broker.test_composite import CONFIG, DIGEST, KEY, POLICY, RESOURCE
from tests.attestation.broker.world import InThread, World, lease_key_of
from tests.attestation.machines import Machine, vendor_of_now, write_roots
from tests.attestation.tdx_made import RECORDED, SoftwareTdx

ROOTS = {"[key_store]": '[roots]\nintel = "roots/intel"\nnvidia = "roots/nvidia"\n[key_store]'}


@pytest.fixture(scope="module")
def domain() -> SoftwareTdx:
    return SoftwareTdx()


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("its processor is Intel's", [vendor_of_now().chip()])


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, domain: SoftwareTdx, machine: Machine) -> Iterator[InThread]:
    world = World(tmp_path_factory.mktemp("tdx"))
    write_roots(world.folder / "roots", machine.gpus[0].vendor)
    (world.folder / "roots" / "intel").mkdir()
    (world.folder / "roots" / "intel" / "root.pem").write_bytes(domain.root.public_bytes(Encoding.PEM))
    world.write_config(change=CONFIG | ROOTS)
    policy = POLICY.replace('"snp"', '"tdx"').replace("allow_unmeasured_code = true", "allow_unmeasured_code = false")
    (world.folder / "composite.toml").write_text(policy + tables())
    with world.start() as running:
        running.upload(RESOURCE, KEY, "composite", digest=DIGEST)
        yield running


def tables() -> str:
    """The templates' tables, with the reference values that the code of this domain rests on."""
    templates = resources.files("hermetic.provision") / "templates"
    tdx = Template((templates / "policy-tdx.toml").read_text()).substitute(secure_boot='"any"', collateral='"if-given"')
    nvgpu = Template((templates / "policy-nvgpu.toml").read_text()).substitute(manifests='"any"')
    body = Quote.parse(RECORDED).body
    assert isinstance(body, TdReport)
    values = {"mr_td": body.mr_td, **{f"rtmr{index}": body.rtmrs[index] for index in range(3)}}
    for name, value in values.items():
        old = f'\n{name} = "any"'
        assert old in tdx
        tdx = tdx.replace(old, f"\n{name} = {json.dumps([value.hex()])}")
    return tdx + nvgpu


def ask(broker: InThread, attester: CompositeAttester, addition: str = "") -> None:
    """Attest, with `addition` behind the devices' text, and ask for the key."""
    with broker.guest() as guest:
        challenge = guest.challenge("tdx")
        public, hermetic = make_key("P-256")[1], hermetic_claims(DIGEST, **lease_key_of(guest))
        made = attester.collect(
            device_report_data(challenge.nonce, public),
            lambda text: report_data(challenge.nonce, public, additional_evidence=text, hermetic=hermetic),
        )
        guest.attest(challenge, public, made.primary, hermetic, additional_evidence=made.additional + addition)
        guest.resource(RESOURCE)


def test_a_domain_with_its_gpu_gets_its_key(broker: InThread, domain: SoftwareTdx, machine: Machine) -> None:
    ask(broker, CompositeAttester(domain.attester(), [machine.devices]))
    released = broker.world.records()[-1].fields
    assert (released["outcome"], released["policy"]) == ("released", "composite")


def test_another_platform_is_refused(broker: InThread, machine: Machine) -> None:
    with pytest.raises(BrokerRefusedError, match=r"tdx\.pck\.chain: wanted a chain to a root that is trusted"):
        ask(broker, CompositeAttester(SoftwareTdx().attester(), [machine.devices]))


def test_devices_that_were_changed_are_refused(broker: InThread, domain: SoftwareTdx, machine: Machine) -> None:
    with pytest.raises(BrokerRefusedError, match=r"tdx\.report_data: .* composite\.bound: "):
        ask(broker, CompositeAttester(domain.attester(), [machine.devices]), " ")


def test_a_domain_without_its_gpu_gets_nothing(broker: InThread, domain: SoftwareTdx) -> None:
    with pytest.raises(BrokerRefusedError, match=r"PolicyDeny: .*kinds\.nvgpu"):
        ask(broker, CompositeAttester(domain.attester()))
