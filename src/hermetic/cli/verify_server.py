"""`hermetic verify HOST:PORT`: what a running server proves, as a table and as JSON."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from hermetic.cli import output

if TYPE_CHECKING:
    from hermetic.client import CallerPolicy, Proof, Tls


def verify_server(server: str, tls: "Tls", policy: "CallerPolicy", timeout_s: float, *, as_json: bool) -> None:
    """Have `server` prove what it is, and show it; raises what the proof raises, with every failed check."""
    from hermetic.client import verify

    proof = verify(server, tls, policy, timeout_s=timeout_s)
    document = {"server": server, "verdict": "pass", **proof.to_json()}
    output.show(document, as_json=as_json, human=lambda: _shown(server, proof))
    for warning in proof.warnings:
        output.warn(f"accepted knowingly: {warning}")


def _shown(server: str, proof: "Proof") -> RenderableType:
    said = proof.statement
    facts = {
        "verdict": f"pass, by policy {proof.appraisal.policy}",
        "as of": proof.time.isoformat(timespec="seconds"),
        "evidence": ", ".join(kind.kind for kind in proof.claims.kinds),
        "serving key": f"sha256:{said.spki_sha256}",
        "models": "\n".join(said.manifests) or "none",
        "policies": "\n".join(said.policies),
        "waivers": ", ".join(said.waivers) or "none",
        "log": said.log_head,
    }
    rows = [("[green]pass[/]", output.escape(check.name)) for check in proof.checks]
    checks = output.table(f"Checks of {output.escape(server)}", ("result", "check"), rows)
    return Group(checks, output.facts("Verdict", facts))
