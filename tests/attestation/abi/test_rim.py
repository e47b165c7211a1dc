"""Manifests: recorded ones are read as they are; what attacks on signed XML need is refused before any signature."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.attestation.abi import strict_xml
from hermetic.attestation.abi.rim import Rim
from hermetic.errors import InvalidRequestError

VECTORS = Path(__file__).parents[2] / "vectors" / "nvgpu"
MATCH = (VECTORS / "hopper_535.vbios_rim_match.xml").read_text()
SIGNATURE = MATCH[MATCH.index("<ds:Signature ") : MATCH.index("</ds:Signature>") + len("</ds:Signature>")]
BODY = MATCH.replace(SIGNATURE, "")


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.xml")), ids=lambda path: path.stem)
def test_recorded_manifests_are_read(path: Path) -> None:
    text = path.read_text()
    rim = Rim.parse(path.read_bytes())
    active = re.findall(r'index="(\d+)" active="True"', text)
    assert sorted(rim.measurements) == sorted(map(int, active))
    for index, digests in rim.measurements.items():
        (resource,) = re.findall(rf'<ns0:Resource type="Measurement" index="{index}" [^>]*>', text)
        assert [digest.hex() for digest in digests] == re.findall(r'ns2:Hash\d+="([0-9a-f]{96})"', resource)
    assert rim.version in text
    assert len(rim.certificates) == text.count("<ds:X509Certificate>")
    edited = {"hopper_535.driver_rim_tampered", "hopper_570.driver_rim_expired"}
    assert (rim.digest == rim.content_digest) == (path.stem not in edited)


def changed(old: str, new: str) -> Callable[[], str]:
    assert MATCH.count(old) >= 1, old
    return lambda: MATCH.replace(old, new, 1)


EVIL = BODY.replace("c3f65ef7", "deadbeef")
ATTACKS: dict[str, Callable[[], str]] = {
    # The signed document goes somewhere harmless, another takes its place.
    "wrapped in another": lambda: EVIL.replace("</SoftwareIdentity>", f"{MATCH}</SoftwareIdentity>"),
    "wrapped, signature outside": lambda: EVIL.replace("</SoftwareIdentity>", f"{BODY}{SIGNATURE}</SoftwareIdentity>"),
    "original inside Object": lambda: EVIL.replace(
        "</SoftwareIdentity>",
        SIGNATURE.replace("</ds:Signature>", f"<ds:Object>{BODY}</ds:Object></ds:Signature>") + "</SoftwareIdentity>",
    ),
    "reference by Id": lambda: MATCH.replace('URI=""', 'URI="#s"').replace("<ns0:Payload", '<ns0:Payload Id="s"'),
    "reference to a file": changed('URI=""', 'URI="file:///etc/passwd"'),
    "reference over the network": changed('URI=""', 'URI="http://example.org/"'),
    "no reference": changed('<ds:Reference URI="">', "<ds:Reference>"),
    "signature moved into the payload": lambda: BODY.replace("</ns0:Payload>", f"{SIGNATURE}</ns0:Payload>"),
    "signature moved to the front": lambda: BODY.replace("<ns0:Entity", f"{SIGNATURE}<ns0:Entity", 1),
    "two signatures": lambda: MATCH.replace(SIGNATURE, SIGNATURE * 2),
    "no signature": lambda: BODY,
    "two payloads": lambda: MATCH.replace(SIGNATURE, "<ns0:Payload/>" + SIGNATURE),
    "two references": lambda: re.sub(r"(<ds:Reference .*</ds:Reference>)", r"\1\1", MATCH),
    "a third transform": changed("</ds:Transforms>", '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/></ds:Transforms>'),
    "an XPath transform": changed("http://www.w3.org/2000/09/xmldsig#enveloped-signature", "http://www.w3.org/TR/1999/REC-xpath-19991116"),
    "a transform with a parameter": changed('enveloped-signature"/>', 'enveloped-signature">x</ds:Transform>'),
    "an HMAC": changed("http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384", "http://www.w3.org/2000/09/xmldsig#hmac-sha1"),
    "a weak digest": changed("http://www.w3.org/2001/04/xmldsig-more#sha384", "http://www.w3.org/2000/09/xmldsig#sha1"),
    "canonical XML with comments": changed("xml-c14n11", "xml-c14n11#WithComments"),
    "exclusive canonical XML": changed("http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/2001/10/xml-exc-c14n#"),
    "a short digest": lambda: re.sub("(<ds:DigestValue>).*(</ds:DigestValue>)", r"\1AAAA\2", MATCH),
    "no certificate": lambda: re.sub(r"(?s)<ds:X509Certificate>.*</ds:X509Certificate>", "", MATCH),
    "a key beside the certificates": changed("<ds:X509Data>", "<ds:KeyName>k</ds:KeyName><ds:X509Data>"),
    # Readers that see different documents.
    "a comment in a value": changed("<ds:DigestValue>", "<ds:DigestValue><!-- -->"),
    "a comment in the payload": changed("<ns0:Payload", "<!-- x --><ns0:Payload"),
    "a processing instruction": changed("<ns0:Payload", "<?x y?><ns0:Payload"),
    "CDATA": changed("<ns0:Payload", "<![CDATA[ ]]><ns0:Payload"),
    "xml:base": changed("<ns0:Payload", '<ns0:Payload xml:base="x"'),
    "xml:lang, declared": changed(
        "<ns0:Payload", '<ns0:Payload xmlns:xml="http://www.w3.org/XML/1998/namespace" xml:lang="x"'
    ),
    "another namespace": changed("<ns0:Payload ", '<ns0:Payload xmlns:ns0="x" '),
    "a hash under another namespace": lambda: MATCH.replace("ns2:Hash0", "ns0:Hash0"),
    "a hash without a namespace": changed("ns2:Hash0", "Hash0"),
    "two hashes under two prefixes": changed(
        'ns2:Hash0="0', 'xmlns:b="http://www.w3.org/2001/04/xmlenc#sha384" b:Hash0="1" ns2:Hash0="0'
    ),
    "an attribute twice": changed('index="1"', 'index="1" index="2"'),
    "an index twice": changed('index="1"', 'index="2"'),
    "an index with a sign": changed('index="1"', 'index="+1"'),
    "an index of other digits": changed('index="1"', 'index="\u0661"'),
    "an index out of range": changed('index="1"', 'index="255"'),
    "fewer hashes than said": changed('alternatives="1"', 'alternatives="2"'),
    "no hashes": changed('alternatives="1"', 'alternatives="0"'),
    "activity in other words": changed('active="True"', 'active="true"'),
    "nothing active": lambda: MATCH.replace('active="True"', 'active="False"'),
    "an unknown prefix": changed("<ns0:Meta", "<nope:Meta"),
    # Bombs and far places.
    "a billion laughs": lambda: '<!DOCTYPE a [<!ENTITY b "cccccccccc">' + "".join(
        f'<!ENTITY b{at} "{f"&b{at - 1};" * 10}">' for at in range(1, 10)
    ).replace("&b0;", "&b;") + "]>" + MATCH.replace("NVIDIA Corporation", "&b9;", 1),
    "an external entity": lambda: '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + MATCH,
    "an external document type": lambda: '<!DOCTYPE a SYSTEM "http://example.org/a.dtd">' + MATCH,
    "a parameter entity": lambda: '<!DOCTYPE a [<!ENTITY % b SYSTEM "file:///etc/passwd"> %b;]>' + MATCH,
    "a default attribute": lambda: '<!DOCTYPE a [<!ATTLIST SoftwareIdentity name CDATA "x">]>' + MATCH,
    "deep nesting": lambda: "<a>" * 20 + "</a>" * 20,
    "many elements": lambda: "<a>" + "<b/>" * 5000 + "</a>",
    "many attributes": lambda: "<a " + " ".join(f'b{at}=""' for at in range(100)) + "/>",
    "too much": lambda: "<a>" + " " * 300_000 + "</a>",
    "two documents": lambda: MATCH + MATCH,
    "text behind": lambda: MATCH + "x",
    "another version of XML": lambda: '<?xml version="1.1"?>' + MATCH,
    "a declared encoding": lambda: '<?xml version="1.0" encoding="iso-8859-1"?>' + MATCH,
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.timeout(60)
def test_attacks_on_signed_xml_are_no_manifests(attack: str) -> None:
    with pytest.raises(InvalidRequestError):
        Rim.parse(ATTACKS[attack]().encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(InvalidRequestError):
        Rim.parse(MATCH.encode(encoding).replace(b"<", b"+ADw-") if encoding == "utf-7" else MATCH.encode(encoding))


def test_what_is_not_signed_may_differ() -> None:
    declared = f'<?xml version="1.0" encoding="UTF-8"?>\n{MATCH}\n'
    assert Rim.parse(declared.encode()) == Rim.parse(MATCH.encode())


def test_an_edit_shows_in_the_digest() -> None:
    for edited in (MATCH.replace("c3f65ef7", "deadbeef"), MATCH.replace("</ns0:Payload>", "</ns0:Payload> ")):
        rim = Rim.parse(edited.encode())
        assert rim.digest != rim.content_digest


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        # Examples of Canonical XML 1.0 and 1.1, 3.2 to 3.4, without what is refused here.
        ("<e1   /><!--", None),
        ("<doc><e1   /><e2   ></e2></doc>", "<doc><e1></e1><e2></e2></doc>"),
        ('<e5 xmlns:b="http://b" xmlns:a="http://a" b:attr="s" a:attr="o" attr2="all" attr="I\'m"/>',
         '<e5 xmlns:a="http://a" xmlns:b="http://b" attr="I\'m" attr2="all" a:attr="o" b:attr="s"></e5>'),
        ('<a xmlns="u"><b xmlns="u"><c xmlns="v"/></b></a>', '<a xmlns="u"><b><c xmlns="v"></c></b></a>'),
        ("<t>First&#x0d;&#10;Second\r\nThird</t>", "<t>First&#xD;\nSecond\nThird</t>"),
        ("<t a='a&#9;&#10;&#13;\"&lt;&gt;&amp; b\tc'>&lt;&gt;&amp;\"</t>",
         '<t a="a&#x9;&#xA;&#xD;&quot;&lt;>&amp; b c">&lt;&gt;&amp;"</t>'),
        ("<t>\u00a9\U0001f512</t>", "<t>\u00a9\U0001f512</t>"),
    ],
)  # fmt: skip
def test_the_canonical_form_is_the_specification_s(written: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(InvalidRequestError):
            strict_xml.parse(written.encode())
        return
    assert strict_xml.canonical(strict_xml.parse(written.encode())).decode() == canonical


def test_the_signed_info_of_recorded_manifests_has_its_canonical_form() -> None:
    # SHA-256 of what libxml2 writes for it.
    rim = Rim.parse(MATCH.encode())
    assert rim.signed_info.startswith(
        b'<ds:SignedInfo xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" xmlns:ds='
    )
    assert hashlib.sha256(rim.signed_info).hexdigest() == LIBXML2_SIGNED_INFO


LIBXML2_SIGNED_INFO = "083f6ef1cfb12fcf8345414990e13b4c31844a1553863399e6efe4bdc4165be8"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(MATCH)), st.sampled_from(["<", ">", "/", '"', "&", " ", "a", "\0", "<b/>", "&amp;"])
        ),
        max_size=4,
    )
)
def test_a_manifest_with_any_changes_is_one_or_an_error(changes: list[tuple[int, str]]) -> None:
    text = MATCH
    for at, new in changes:
        text = text[:at] + new + text[at:]
    try:
        Rim.parse(text.encode())
    except InvalidRequestError:
        return


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>/abx:=\"'&;! -[]xmlns\n", max_size=120))
def test_any_text_is_xml_or_an_error(text: str) -> None:
    try:
        root = strict_xml.parse(text.encode("utf-8", "surrogatepass"))
    except InvalidRequestError:
        return
    again = strict_xml.canonical(root)
    assert strict_xml.canonical(strict_xml.parse(again)) == again
