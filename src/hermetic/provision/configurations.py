"""The configurations of an installation: templates/ filled in from a `Plan`.

The templates are what people will read and change, so their comments are for them. Tests load every rendered file with
the model that will read it.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Final

from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.provision.names import ROLES, addresses
from hermetic.provision.plan import Plan

MATCHES_NO_GUEST: Final = "0" * 96
"""A launch digest (SHA-384) that no guest has: what stands where a reference value must be written."""

__all__ = [
    "broker_toml",
    "caller_appraisal_toml",
    "caller_toml",
    "operator_toml",
    "policy_toml",
    "publishers_toml",
    "server_toml",
]


def server_toml(plan: Plan) -> str:
    """The server's configuration (server/config.py)."""
    values = {
        "server_host": plan.server_host,
        "server_port": plan.server_port,
        "server_names": addresses(plan.server_names)[0] or list(plan.server_names),
        "client_name": ROLES["client"].spiffe(plan.trust_domain),
        "operator_name": ROLES["operator"].spiffe(plan.trust_domain),
        "tenant": plan.tenant,
        "broker_url": f"https://{plan.broker_names[0]}:{plan.broker_port}",
        "server_log": f"{plan.trust_domain}/server",
        "waived": list(plan.waived),
    }
    source = "\n".join(f"{name} = {_toml(value)}" for name, value in _source(plan).items())
    return _render("server.toml", plan, values, {"source": source})


def _source(plan: Plan) -> Mapping[str, object]:
    """Where evidence comes from, as far as it is not the kind's own place."""
    return {"tcti": plan.tcti, "state_folder": "state"} if plan.tee == "tpm" else {}


def broker_toml(plan: Plan, ek_authorities: Sequence[str]) -> str:
    """The broker's configuration (attestation/broker/config.py); `ek_authorities` are files beside it."""
    dns, ip = addresses(plan.server_names)
    values = {
        "broker_host": plan.broker_host,
        "broker_port": plan.broker_port,
        "admin_port": plan.admin_port,
        "broker_log": _broker_log(plan),
        "host_name": ROLES["host"].spiffe(plan.trust_domain),
        "server_common_name": plan.server_names[0],
        "server_dns": dns,
        "server_ip": ip,
        "ek_authorities": [] if plan.names.demo else list(ek_authorities),
        "software_ek_authorities": list(ek_authorities) if plan.names.demo else [],
        **_roots(plan),
    }
    return _with_parts("broker", ["tpm"] if plan.tee == "tpm" else [], plan, values)


def operator_toml(plan: Plan) -> str:
    """How an operator reaches the broker (attestation/operator_settings.py)."""
    admin_url = f"https://{plan.broker_names[0]}:{plan.admin_port}"
    return _render("operator.toml", plan, {"admin_url": admin_url, "broker_log": _broker_log(plan)})


def _broker_log(plan: Plan) -> str:
    """What the broker is called where a name is all there is: its log's, its leases', and for whom admin tokens are."""
    return f"{plan.trust_domain}/broker"


def policy_toml(plan: Plan, trusted: TrustedPublishers) -> str:
    """The appraisal policy of every model and of serving keys (attestation/policy/)."""
    heading = "What a host must be to get the keys of the models named here"
    return _appraisal_toml(plan, trusted, heading, [ROLES["host"].spiffe(plan.trust_domain)])


def caller_appraisal_toml(plan: Plan, trusted: TrustedPublishers) -> str:
    """The appraisal policy of callers: what a server must be before anything is sent to it."""
    return _appraisal_toml(plan, trusted, "What a server must be before we send it anything", plan.server_names)


def caller_toml(plan: Plan) -> str:
    """What callers demand of a server (client/policy.py)."""
    authorities = ["ak-ca.pem"] if plan.tee == "tpm" else []
    return _render("caller.toml", plan, {"ak_authorities": authorities, **_roots(plan)})


def _appraisal_toml(plan: Plan, trusted: TrustedPublishers, heading: str, names: Sequence[str]) -> str:
    kinds = [plan.tee, *(["nvgpu"] if plan.devices == "nvidia" else [])]
    values = {
        "policy_name": "default",
        "kinds": kinds,
        "demo": plan.names.demo,
        "hosts": list(names),
        "publishers_digest": [trusted.digest().hex()],
        "waived": list(plan.waived),
        "zeroing": plan.zeroing,
        "secure_boot": "any" if plan.names.demo else "required",
        "measurement": "any" if plan.names.demo else [MATCHES_NO_GUEST],
        "measured": not plan.names.demo,
        "collateral": "if-given" if plan.names.demo else "required",
        "manifests": "any" if plan.names.demo else "required",
    }
    named = [kind for kind in kinds if kind != "sample"]
    return _with_parts("policy", named, plan, values, {"heading": heading})


def publishers_toml(trusted: TrustedPublishers) -> str:
    """The list of trusted publishers (enclave/publishers.py)."""
    head = "# Whose models are opened. `code` admits TorchScript and torch.export, which are programs."
    tables = [
        "\n".join(["[[publishers]]", *(f"{name} = {_toml(value)}" for name, value in publisher.document().items())])
        for publisher in trusted.publishers
    ]
    return "\n\n".join([head, *tables]) + "\n"


def _roots(plan: Plan) -> dict[str, object]:
    """Whose processors and GPUs are believed: of those that the host has."""
    return {
        "amd": "shipped" if plan.tee == "snp" else "none",
        "intel": "shipped" if plan.tee == "tdx" else "none",
        "nvidia": "shipped" if plan.devices == "nvidia" else "none",
    }


def _with_parts(
    stem: str,
    parts: Sequence[str],
    plan: Plan,
    values: Mapping[str, object],
    as_they_are: Mapping[str, str] | None = None,
) -> str:
    """A template, and one more for each part."""
    names = [f"{stem}.toml", *(f"{stem}-{part}.toml" for part in parts)]
    return "".join(_render(name, plan, values, as_they_are) for name in names)


def _render(
    template: str, plan: Plan, values: Mapping[str, object], as_they_are: Mapping[str, str] | None = None
) -> str:
    """A template with each `$name` replaced by its value as TOML; `$note` and what is given so stand as they are."""
    text = (resources.files("hermetic.provision") / "templates" / template).read_text(encoding="utf-8")
    shared = {"profile": plan.profile, "tee": plan.tee, "devices": plan.devices}
    plain = {"note": f"{DEMO_ORGANISATION}." if plan.names.demo else "", **(as_they_are or {})}
    rendered = Template(text).substitute({name: _toml(value) for name, value in {**shared, **values}.items()} | plain)
    return "\n".join(line.rstrip() for line in rendered.splitlines()) + "\n"


def _toml(value: object) -> str:
    """A string, number, boolean or list of these as TOML, which agrees with JSON on them."""
    return json.dumps(value, ensure_ascii=False)
