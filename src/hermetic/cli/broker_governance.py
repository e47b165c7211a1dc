"""`hermetic broker init|operator-key|propose|sign|submit|governance`: policies and keys that k of n people sign.

The order of a change: `propose` asks the broker what is in force and writes a file, each operator runs `sign` on it
where their own key is (no network), `submit` hands it in.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from hermetic.attestation.bounded_file import read_bounded
from hermetic.cli import lease_target, output, passphrase
from hermetic.errors import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    from hermetic.attestation.governance import Change, OperatorSet
    from hermetic.attestation.governance.contents import Content, Subject
    from hermetic.attestation.governance.proposing import Proposer

MAX_FILE_BYTES: Final = 1024 * 1024
SIGNER: Final = "hermetic broker sign CHANGE --name NAME --key KEYFILE"

OperatorOption = Annotated[Path, typer.Option("--operator", "-o", help="The operator's TOML file.")]
PeopleOption = Annotated[
    list[str],
    typer.Option("--signer", help="NAME=PUBLIC KEY of one who signs: 64 hex digits, or a PEM file. Repeatable."),
]
ThresholdOption = Annotated[int, typer.Option(min=1, help="How many of them must sign a change.")]
ScopeOption = Annotated[
    list[str] | None,
    typer.Option("--scope", help="NAME=PREFIX: this one signs for models' names of the prefix only. Repeatable."),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is signed, and stands in the log.")]
TargetOption = Annotated[Path, typer.Option("--output", help="Write the change to this new file.")]
DaysOption = Annotated[int, typer.Option("--days", min=1, max=365, help="For how long it may be signed and handed in.")]

_propose = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (init, sign, submit, governance):
        app.command()(command)
    app.command(name="operator-key")(operator_key)
    app.add_typer(_propose, name="propose", help="Write a change that operators are to sign.")


def init(
    config: Annotated[Path, typer.Option("--config", "-c", help="The broker's TOML file.")],
    signer: PeopleOption,
    threshold: ThresholdOption,
    scope: ScopeOption = None,
    as_json: output.JsonOption = False,
) -> None:
    """Fix who signs for policies and keys, once, before the broker starts. The file's policies are the first ones."""
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.initial import fix_operators
    from hermetic.attestation.governance import OfConfiguration, OfPolicy

    first = fix_operators(BrokerConfig.load(config), _people(signer, threshold, scope))
    facts = {"broker": first.digest, "log": first.log, "threshold": first.operators.threshold,
             "operators": [one.name for one in first.operators.operators],
             "policies": [f"{one.subject.of} {one.subject.prefix!r}" for one in first.policies
                          if isinstance(one.subject, OfPolicy)],
             "configuration": [one.subject.part for one in first.policies
                               if isinstance(one.subject, OfConfiguration)]}  # fmt: skip
    output.show(facts, as_json=as_json, human=lambda: output.facts("governance", facts))
    output.note("Write the broker's name down where its machine cannot change it: every signed change carries it.")


def operator_key(
    target: Annotated[
        str, typer.Argument(help="A new file for the private key; it belongs to one person. Or pkcs11:..., of a token.")
    ],
    *,
    passphrase_from: passphrase.PassphraseOption = passphrase.PROMPT,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Write the key in the clear: whoever reads the file can sign.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Make none: print the public half of one that exists.")] = False,
    as_json: output.JsonOption = False,
) -> None:
    """Make the key that one operator signs with, under a passphrase, and print its public half.

    Of a key in a PKCS #11 token, which the token's own tool makes, only the public half is printed.
    """
    from hermetic.attestation.governance.operator_key import OperatorKey, open_signer
    from hermetic.attestation.governance.operator_token import SCHEME

    if show or target.startswith(SCHEME):
        with open_signer(target, passphrase.asking(passphrase_from, "passphrase or PIN")) as signer:
            public = signer.public
    else:
        key = OperatorKey.generate()
        key.save(Path(target), None if no_passphrase else bytes(passphrase.new_passphrase(passphrase_from)))
        public = key.public
    facts = {"public": public, "file": target}
    output.show(facts, as_json=as_json, human=lambda: output.facts("operator's key", facts))


@_propose.command()
def policy(
    form: Annotated[Path, typer.Option(help="The appraisal policy, TOML.")],
    *,
    operator: OperatorOption,
    reason: ReasonOption,
    target: TargetOption,
    prefix: Annotated[str, typer.Option(help="Prefix of the names that it is for; all when not given.")] = "",
    of: Annotated[
        Literal["models", "secrets", "serving-certificates"], typer.Option(help="What it is for.")
    ] = "models",
    rollback: Annotated[Literal["floor", "latest-only"], typer.Option(help="Of models: which versions.")] = "floor",
    roll_over_s: Annotated[int, typer.Option(min=0, help="Of models: when the latest alone counts.")] = 86400,
    lease_s: Annotated[float, typer.Option(min=0.1, help="Of models: length of a lease.")] = 3600,
    lease_grace_s: Annotated[float, typer.Option(min=0, help="Of models: and how much longer at most.")] = 900,
    days: DaysOption = 7,
) -> None:
    """A policy for a prefix of names."""
    from hermetic.attestation.governance import Form, ModelForm, OfPolicy
    from hermetic.attestation.policy import AppraisalPolicy

    text = read_bounded(form, MAX_FILE_BYTES).decode("utf-8", "strict")
    AppraisalPolicy.load(text)
    content: Content = Form(form=text)
    if of == "models":
        lengths = {"lease_ms": round(1000 * lease_s), "grace_ms": round(1000 * lease_grace_s)}
        content = ModelForm(form=text, rollback=rollback, roll_over_s=roll_over_s, **lengths)
    _write_proposal(operator, OfPolicy(of=of, prefix=prefix), content, reason, days, target)


@_propose.command()
def key(
    key_id: Annotated[str, typer.Argument(help="kbs:///repository/type/tag of a pending key.")],
    operator: OperatorOption,
    reason: ReasonOption,
    target: TargetOption,
    days: DaysOption = 7,
) -> None:
    """Let an uploaded key be released."""
    proposer, now = _proposer(operator), datetime.now(UTC)
    _write_change(target, proposer.key(_resource(key_id), reason, now, timedelta(days=days)))


@_propose.command()
def operators(
    signer: PeopleOption,
    threshold: ThresholdOption,
    operator: OperatorOption,
    reason: ReasonOption,
    target: TargetOption,
    scope: ScopeOption = None,
    days: DaysOption = 7,
) -> None:
    """Another set of operators. The set in force signs it, not the new one."""
    from hermetic.attestation.governance import OfOperators

    _write_proposal(operator, OfOperators(), _people(signer, threshold, scope), reason, days, target)


@_propose.command()
def floor(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    to: Annotated[int, typer.Option("--to", min=0, help="The new floor, below the one in force.")],
    operator: OperatorOption,
    reason: ReasonOption,
    target: TargetOption,
    days: DaysOption = 7,
) -> None:
    """Let old versions of a model be released again."""
    from hermetic.attestation.governance import FloorContent, OfFloor
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        before = client.floors().get(name, 0)
    if to >= before:
        raise InvalidRequestError(f"--to: expected below the floor of {name}, {before}, got {to}")
    _write_proposal(operator, OfFloor(name=name), FloorContent(before=before, to=to), reason, days, target)


@_propose.command()
def restore(
    operator: OperatorOption,
    reason: ReasonOption,
    target: TargetOption,
    *,
    model: lease_target.ModelOption = None,
    version: lease_target.VersionOption = 0,
    server: lease_target.ServerOption = None,
    chip: lease_target.ChipOption = None,
    days: DaysOption = 7,
) -> None:
    """Take the revocation of a model, a server or a chip back."""
    from hermetic.attestation.governance.proposing import restoring
    from hermetic.attestation.operator_settings import OperatorSettings

    named = lease_target.named(model, version, server, chip)
    with OperatorSettings.load(operator).connect() as client:
        subject, content = restoring(client.leases(), named)
    _write_proposal(operator, subject, content, reason, days, target)


@_propose.command()
def configuration(
    part: Annotated[Literal["admins", "serving", "trust"], typer.Argument(help="Which part of the configuration.")],
    *,
    operator: OperatorOption,
    reason: ReasonOption,
    target: TargetOption,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="The TOML file that is to come. Without it: what the broker runs with now."
        ),
    ] = None,
    days: DaysOption = 7,
) -> None:
    """A part of the broker's configuration: trust (whose evidence is genuine), admins (roles), serving (names)."""
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.signed_configuration import signed_parts
    from hermetic.attestation.governance import OfConfiguration

    subject = OfConfiguration(part=part)
    if config is not None:
        content: Content = signed_parts(BrokerConfig.load(config))[subject]
    else:
        content = _proposer(operator).part(subject)
    _write_proposal(operator, subject, content, reason, days, target)


def sign(
    change: Annotated[Path, typer.Argument(help="The change; the signature is added to this file.")],
    name: Annotated[str, typer.Option("--name", help="Whose signature it is: the name in the set of operators.")],
    key_file: Annotated[str, typer.Option("--key", help="That operator's key file, or pkcs11:... of a token.")],
    passphrase_from: passphrase.PassphraseOption = passphrase.PROMPT,
    as_json: output.JsonOption = False,
) -> None:
    """Sign a change, after showing all that it says. Needs no network and no broker."""
    from hermetic.attestation.governance.change import fits
    from hermetic.attestation.governance.operator_key import open_signer

    read = _read_change(change)
    if not fits(read.statement, read.content):
        raise InvalidRequestError(f"{change}: expected the content that its statement is about, got another one")
    if not as_json:
        _show_change(read, as_json=False)
    with open_signer(key_file, passphrase.asking(passphrase_from, f"passphrase or PIN of {name}")) as signer:
        signed = signer.sign(read, name)
    _replace(change, signed.dumps())
    if as_json:
        _show_change(signed, as_json=True)
    output.note(f"signed by {', '.join(one.operator for one in signed.signatures)}")


def submit(
    change: Annotated[
        list[Path], typer.Argument(help="The change; copies that different people signed are put together.")
    ],
    operator: OperatorOption,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Write the log's checkpoint to this file, to be kept away from the broker.")
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Hand a signed change in. The admin token lets it in; the signatures are what counts."""
    from hermetic.attestation.operator_settings import OperatorSettings

    first, *others = [_read_change(path) for path in change]
    for other in others:
        if other.statement != first.statement:
            raise InvalidRequestError("expected copies of one change, got different ones")
        first = first.with_signatures(other.signatures)
    with OperatorSettings.load(operator).connect() as client:
        receipt = client.hand_in(first.dumps())
    if checkpoint is not None:
        _replace(checkpoint, base64.b64decode(str(receipt["checkpoint"])))
    output.show(receipt, as_json=as_json, human=lambda: output.facts("in force", receipt))


def governance(operator: OperatorOption, as_json: output.JsonOption = False) -> None:
    """Show who the operators are, what is in force and signed by whom, and which keys are pending."""
    from hermetic.attestation.governance.change import parse_subject, shown
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        state: dict[str, Any] = dict(client.governance())
    people = state["operators"]["content"]
    rows = [
        (
            output.escape(shown(parse_subject(one["subject"]))),
            str(one["version"]),
            output.escape(", ".join(one["by"]) or "broker init"),
        )
        for one in state["in_force"]
    ]
    title = f"{people['threshold']} of {', '.join(one['name'] for one in people['operators'])}"
    output.show(
        state, as_json=as_json, human=lambda: output.table(output.escape(title), ("what", "version", "signed by"), rows)
    )
    if not as_json:
        for one in state["pending"]:
            output.warn(f"pending: {one['resource']}")
        for one in state["unsigned"]:
            output.warn(f"not what operators signed for: configuration {one['subject']['part']}")


def _proposer(operator: Path) -> "Proposer":
    from hermetic.attestation.governance.proposing import Proposer
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        return Proposer.of_json(client.governance())


def _write_proposal(
    operator: Path, subject: "Subject", content: "Content", reason: str, days: int, target: Path
) -> None:
    change = _proposer(operator).change(subject, content, reason, datetime.now(UTC), timedelta(days=days))
    _write_change(target, change)


def _write_change(target: Path, change: "Change") -> None:
    try:
        with target.open("xb") as file:
            file.write(change.dumps())
    except OSError as error:
        raise ConfigurationError(f"--output: expected a new file, got {target}: {error.strerror}") from error
    output.note(f"{target}: to be signed, then handed in, before {change.statement.not_after}: {SIGNER}")


def _show_change(change: "Change", *, as_json: bool) -> None:
    from hermetic.attestation.governance.change import shown

    statement, content = change.statement, change.content.to_json()
    form = content.pop("form", None)
    facts: Mapping[str, Any] = {
        "about": shown(statement.subject),
        "version": statement.version,
        "digest": statement.digest,
        "broker": statement.broker,
        "previous": statement.previous,
        "until": statement.not_after,
        "reason": statement.reason,
        **content,
    }
    output.show(change.to_json(), as_json=as_json, human=lambda: output.facts("what you sign", facts))
    if form is not None and not as_json:
        typer.echo(form)


def _people(signers: Sequence[str], threshold: int, scopes: Sequence[str] | None) -> "OperatorSet":
    from pydantic import ValidationError

    from hermetic.attestation.governance import Operator, OperatorSet
    from hermetic.attestation.governance.operator_key import read_public_key

    keys = dict(_pair(one, "--signer", "NAME=PUBLIC KEY") for one in signers)
    prefixes: dict[str, set[str]] = {}
    for name, prefix in (_pair(one, "--scope", "NAME=PREFIX") for one in scopes or ()):
        prefixes.setdefault(name, set()).add(prefix)
    if len(keys) != len(signers) or not prefixes.keys() <= keys.keys():
        raise ConfigurationError("--signer, --scope: expected each name once, and scopes of those who sign")
    try:
        people = [
            Operator(key=read_public_key(key), name=name, prefixes=tuple(sorted(prefixes.get(name, {""}))))
            for name, key in keys.items()
        ]
        return OperatorSet.of(people, threshold)
    except ValidationError as error:
        raise ConfigurationError("; ".join(str(item["msg"]) for item in error.errors())) from None


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigurationError(f"{option}: expected {form}, got {text!r}")
    return name, value


def _resource(key_id: str) -> str:
    return key_id.removeprefix("kbs:///")


def _read_change(path: Path) -> "Change":
    from hermetic.attestation.governance import Change

    return Change.loads(read_bounded(path, MAX_FILE_BYTES))


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.signed")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)  # noqa: PTH105 - replace, whatever is there
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
