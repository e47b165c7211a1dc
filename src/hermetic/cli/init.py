"""`hermetic init DIR`: private CAs, keys, requests, configurations and policies to start from."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from hermetic.cli import output

Tee = Literal["tpm", "snp", "tdx", "sample"]
Devices = Literal["nvidia", "none"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; nothing in it is overwritten.")],
    *,
    demo: Annotated[
        bool, typer.Option("--demo", help="Sign at once, mark everything as not secret, live 7 days.")
    ] = False,
    sign: Annotated[
        bool, typer.Option("--sign", help="Certify the requests in DIR with the CAs in DIR/authority.")
    ] = False,
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain of every name.")] = "hermetic.internal",
    organisation: Annotated[str, typer.Option(help="Organisation in every subject.")] = "Hermetic",
    tee: Annotated[Tee | None, typer.Option(help="How the host makes evidence; `sample` needs --demo.")] = None,
    devices: Annotated[Devices, typer.Option(help="Devices that are part of the host's evidence.")] = "none",
    tcti: Annotated[str, typer.Option(help="How the host reaches its TPM.")] = "device:/dev/tpmrm0",
    server_name: Annotated[list[str] | None, typer.Option(help="Host name that clients call; may be repeated.")] = None,
    broker_name: Annotated[list[str] | None, typer.Option(help="Host name that hosts call; may be repeated.")] = None,
    server_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0: any.")] = 8001,
    broker_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the broker.")] = 8443,
    admin_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the broker's admin listener.")] = 8444,
    ek_authority: Annotated[
        list[Path] | None,
        typer.Option(help="CA (PEM) of TPM endorsement keys, a software TPM's in a demo; repeatable."),
    ] = None,
    publisher: Annotated[
        list[str] | None, typer.Option(help="Name of a publisher to make keys for; repeatable.")
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Write private CAs, keys, requests, configurations and policies to start from."""
    from hermetic.provision.authority import Names
    from hermetic.provision.demo import DEMO_PUBLISHERS, demo_plan, govern
    from hermetic.provision.layout import sign as certify
    from hermetic.provision.layout import write
    from hermetic.provision.plan import Plan

    if sign:
        _report(folder, [str(path) for path in certify(folder)], demo=demo, as_json=as_json)
        return
    plan = Plan(
        Names.of_demo() if demo else Names(organisation),
        "hermetic.demo" if demo else trust_domain,
        tee=tee or "tpm",
        devices=devices,
        tcti=tcti,
        server_port=server_port,
        broker_port=broker_port,
        admin_port=admin_port,
        server_names=server_name or ["localhost", "127.0.0.1"],
        broker_names=broker_name or ["localhost", "127.0.0.1"],
        publishers=publisher or (DEMO_PUBLISHERS if demo else ["first-publisher"]),
        ek_authorities=ek_authority or [],
    )
    if demo:
        plan, weaker = demo_plan(plan, tee=tee)
        for text in weaker:
            output.warn(text)
    write(folder, plan)
    signed = certify(folder) if demo else []
    if demo:
        govern(folder)
    _report(folder, [str(path) for path in signed], demo=demo, as_json=as_json)


def _report(folder: Path, signed: list[str], *, demo: bool, as_json: bool) -> None:
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    document = {"folder": str(folder), "demo": demo, "signed": signed, "files": written}

    def table() -> Table:
        rows = [(name, what) for name, what in _FOLDERS.items() if (folder / name).is_dir()]
        return output.table(str(folder), ["folder", "what it is for"], rows)

    output.show(document, as_json=as_json, human=table)
    if demo:
        output.warn("HERMETIC DEMO - NOT SECRET: these keys are for trying things out on this machine, for 7 days.")
    elif not signed:
        output.note(
            f"Next: have the requests (*.csr) signed, by your own CA or by `hermetic init {folder} --sign`; then move "
            "authority/ to a machine that serves nothing, credentials/kek into a systemd credential or TPM, and the "
            "other folders to their hosts. `hermetic doctor` looks for what was forgotten. The broker starts once "
            "`hermetic broker init` has named who signs for its policies and keys."
        )


_FOLDERS = {
    "authority": "CA, publisher and operator keys: never on a host that serves",
    "broker": "the key broker's configuration, policies, and the keys that it signs with",
    "credentials": "the broker's key-encryption key, away from its store",
    "server": "one inference host",
    "client": "one caller",
}
