import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation import evidence, server_evidence
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.server_evidence import Statement, StatementTree, leaf, report_data, verify_path
from hermetic.errors import InvalidRequestError, LogError

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "server-evidence").glob("*.json"))
STATEMENT = Statement(
    nonce="11" * 32,
    spki_sha256="22" * 32,
    manifests=("33" * 32,),
    policies=("profile:production",),
    waivers=(),
    log_head="1:" + "44" * 32,
)


def test_there_are_vectors() -> None:
    assert {"one", "seven"} <= {path.stem for path in VECTORS}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_vector_gives_its_root_paths_and_digests(path: Path) -> None:
    vector = json.loads(path.read_text())
    statements = [one["canonical"].encode() for one in vector["statements"]]
    tree = StatementTree([leaf(one) for one in statements])
    assert (tree.root.hex(), tree.size) == (vector["root"], vector["size"])
    for index, (one, text) in enumerate(zip(vector["statements"], statements, strict=True)):
        assert Statement.parse(text).model_dump(mode="json") == one["value"]
        assert leaf(text).hex() == one["leaf"]
        assert [node.hex() for node in tree.path(index)] == one["path"]
        assert verify_path(text, index, tree.size, [bytes.fromhex(node) for node in one["path"]]) == tree.root
    assert report_data(tree.root, tree.size, vector["additional-evidence"]).hex() == vector["report-data"]
    assert server_evidence.device_report_data(tree.root, tree.size).hex() == vector["device-report-data"]


@given(st.integers(1, 40), st.data())
def test_every_path_leads_to_the_root_and_from_nowhere_else(size: int, data: st.DataObject) -> None:
    statements = [b"statement %d" % number for number in range(size)]
    tree = StatementTree([leaf(one) for one in statements])
    index = data.draw(st.integers(0, size - 1))
    path = tree.path(index)
    assert verify_path(statements[index], index, size, path) == tree.root
    assert verify_path(b"another", index, size, path) != tree.root
    with pytest.raises(LogError, match="expected an index below"):
        tree.path(size)


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [(0, 0, ()), (1, 1, ()), (-1, 1, ()), (0, 1 << 20, ()), (0, 1, (b"\0" * 32,)), (0, 2, ()), (0, 2, (b"short",))],
)
def test_what_is_no_path_of_such_a_tree_is_refused(index: int, size: int, path: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=r"path: (expected|a proof)"):
        verify_path(STATEMENT.encode(), index, size, path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.replace(b"hermetic-evidence/1", b"hermetic-evidence/2"), "context"),
        (lambda text: text.replace(b'"nonce":"11', b'"nonce":"1'), "nonce"),
        (lambda text: text.replace(b"{", b'{"additional-evidence":"",', 1), "additional-evidence"),
        (lambda text: text.replace(b",", b", ", 1), "canonical form"),
        (lambda text: text.replace(b'"waivers":[]', b'"waivers":[],"waivers":[]'), "got another form"),
        (lambda text: text.replace(b',"waivers":[]', b""), "waivers"),
        (lambda text: text[:-1], "statement"),
        (lambda text: b" " * (server_evidence.MAX_STATEMENT_SIZE + 1), "at most"),
    ],
)
def test_a_statement_in_any_other_form_is_refused(change: Callable[[bytes], bytes], named: str) -> None:
    text = change(STATEMENT.encode())
    with pytest.raises(InvalidRequestError, match=named):
        Statement.parse(text)


def test_what_a_broker_is_answered_with_is_never_what_a_caller_is() -> None:
    """Whatever 32 bytes are asked for: the objects under the two digests have other members."""
    key = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}
    broker: dict[str, JsonValue] = {"additional-evidence": "", "nonce": "eA==", "tee-pubkey": key}
    assert evidence.jcs_digest(broker) == evidence.report_data("eA==", key)
    root = StatementTree([leaf(STATEMENT.encode())]).root
    caller: dict[str, JsonValue] = {
        "additional-evidence": "",
        "context": server_evidence.CONTEXT,
        "root": root.hex(),
        "size": 1,
    }
    assert evidence.jcs_digest(caller) == report_data(root, 1)
    assert not {"nonce", "tee-pubkey"} & caller.keys()
    assert "context" not in broker
