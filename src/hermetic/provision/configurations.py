"""The configurations of an installation: templates/ filled in from a `Plan`.

The templates are what people will read and change, so their comments are for them. Tests load every rendered file with
the model that will read it.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template

from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.provision.names import ROLES, addresses
from hermetic.provision.plan import Plan

__all__ = ["broker_toml", "operator_toml", "policy_toml", "publishers_toml", "server_toml"]


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
        "tcti": plan.tcti,
        "server_log": f"{plan.trust_domain}/server",
        "waived": list(plan.waived),
    }
    return _render("server.toml", plan, values)


def broker_toml(plan: Plan, ek_authorities: Sequence[str]) -> str:
    """The broker's configuration (attestation/broker/config.py); `ek_authorities` are files beside it."""
    dns, ip = addresses(plan.server_names)
    values = {
        "broker_host": plan.broker_host,
        "broker_port": plan.broker_port,
        "admin_port": plan.admin_port,
        "broker_log": f"{plan.trust_domain}/broker",
        "host_name": ROLES["host"].spiffe(plan.trust_domain),
        "server_common_name": plan.server_names[0],
        "server_dns": dns,
        "server_ip": ip,
        "ek_authorities": [] if plan.names.demo else list(ek_authorities),
        "software_ek_authorities": list(ek_authorities) if plan.names.demo else [],
    }
    return _with_tpm_part("broker", plan, values)


def operator_toml(plan: Plan) -> str:
    """How an operator reaches the broker (attestation/operator_settings.py)."""
    return _render("operator.toml", plan, {"admin_url": f"https://{plan.broker_names[0]}:{plan.admin_port}"})


def policy_toml(plan: Plan, trusted: TrustedPublishers) -> str:
    """The appraisal policy of every model and of serving keys (attestation/policy/)."""
    values = {
        "policy_name": "default",
        "demo": plan.names.demo,
        "hosts": [ROLES["host"].spiffe(plan.trust_domain)],
        "publishers_digest": [trusted.digest().hex()],
        "waived": list(plan.waived),
        "zeroing": plan.zeroing,
        "secure_boot": "any" if plan.names.demo else "required",
    }
    return _with_tpm_part("policy", plan, values)


def publishers_toml(trusted: TrustedPublishers) -> str:
    """The list of trusted publishers (enclave/publishers.py)."""
    head = "# Whose models are opened. `code` admits TorchScript and torch.export, which are programs."
    tables = [
        "\n".join(["[[publishers]]", *(f"{name} = {_toml(value)}" for name, value in publisher.document().items())])
        for publisher in trusted.publishers
    ]
    return "\n\n".join([head, *tables]) + "\n"


def _with_tpm_part(stem: str, plan: Plan, values: Mapping[str, object]) -> str:
    text = _render(f"{stem}.toml", plan, values)
    return text + _render(f"{stem}-tpm.toml", plan, values) if plan.tee == "tpm" else text


def _render(template: str, plan: Plan, values: Mapping[str, object]) -> str:
    """A template with each `$name` replaced by its value as TOML; `$note` stands as it is."""
    text = (resources.files("hermetic.provision") / "templates" / template).read_text(encoding="utf-8")
    shared = {"profile": plan.profile, "tee": plan.tee}
    note = {"note": f"{DEMO_ORGANISATION}." if plan.names.demo else ""}
    rendered = Template(text).substitute({name: _toml(value) for name, value in {**shared, **values}.items()} | note)
    return "\n".join(line.rstrip() for line in rendered.splitlines()) + "\n"


def _toml(value: object) -> str:
    """A string, number, boolean or list of these as TOML, which agrees with JSON on them."""
    return json.dumps(value, ensure_ascii=False)
