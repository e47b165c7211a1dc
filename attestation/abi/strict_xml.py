"""A strict reader of XML and its canonical form, for signed documents: no less than they need, and no more.

Source: W3C "Canonical XML Version 1.1" (inclusive, without comments), on what is left of XML 1.0 here. Refused:
document type declarations (so there are no entities, no defaults, nothing external), processing instructions, comments,
CDATA, attributes `xml:*`, namespaces that are undeclared again, other encodings than UTF-8. With these gone, the
canonical form of an element is the same whether it stands alone or in its document but for the namespaces in scope,
which are kept. Reading is expat's, through the standard library. Not here: what the elements mean (rim.py), whether a
digest is the right one (verifiers/).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from xml.parsers import expat

from hermetic.errors import InvalidRequestError

MAX_SIZE: Final = 256 * 1024  # bytes; reference manifests have about 20,000
MAX_DEPTH: Final = 16  # elements inside each other
MAX_ELEMENTS: Final = 4096
MAX_ATTRIBUTES: Final = 64  # of one element

_TEXT_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"})
_ATTRIBUTE_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#x9;", "\n": "&#xA;", "\r": "&#xD;"}
)


class Name(NamedTuple):
    """An expanded name: namespace ("" for none) and local part. A tuple: hashed and compared at each attribute."""

    namespace: str
    local: str


@dataclass(eq=False, slots=True)
class Element:
    """One element; `scope` maps each prefix ("" for the default namespace) to its namespace."""

    tag: str  # as written, with its prefix
    name: Name
    scope: Mapping[str, str]
    attributes: Mapping[Name, str]
    written: Mapping[Name, str]  # attribute -> its name as written
    content: "list[Element | str]" = field(default_factory=list)

    @property
    def children(self) -> "list[Element]":
        """The elements directly inside."""
        return [one for one in self.content if isinstance(one, Element)]

    @property
    def text(self) -> str:
        """The text directly inside."""
        return "".join(one for one in self.content if isinstance(one, str))

    def walk(self) -> "Iterator[Element]":
        """This element and all inside."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse(data: bytes) -> Element:
    """The root element of a document; raises `InvalidRequestError` for what is not XML or is refused here."""
    if len(data) > MAX_SIZE:
        raise InvalidRequestError(f"XML: expected at most {MAX_SIZE} bytes, got {len(data)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"XML: expected UTF-8, got {error}") from error
    # Expat takes bytes that alternate with zeros for UTF-16, whatever encoding it is told.
    if "\0" in text:
        raise InvalidRequestError("XML: expected UTF-8, got a character 0")
    reader = _Reader()
    try:
        reader.expat.Parse(text, True)  # noqa: FBT003 - expat's own "this is all"
    except expat.ExpatError as error:
        raise InvalidRequestError(f"XML: expected a well-formed document, got {error}") from error
    if reader.root is None:
        raise InvalidRequestError("XML: expected a document, got none")
    return reader.root


def canonical(element: Element, without: Element | None = None) -> bytes:
    """The canonical form of `element` and all inside it but `without`, with the namespaces in its scope."""
    parts: list[str] = []
    _write(parts, element, {}, without)
    return "".join(parts).encode()


class _Reader:
    """Builds elements from expat's events; raises on the first one that is refused."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0
        # A text is handed to it, so that no declaration can say another encoding.
        self.expat = expat.ParserCreate("utf-8")
        self.expat.ordered_attributes = True
        self.expat.buffer_text = True
        self.expat.XmlDeclHandler = self._declaration
        self.expat.StartElementHandler = self._start
        self.expat.EndElementHandler = self._end
        self.expat.CharacterDataHandler = self._characters
        self.expat.StartDoctypeDeclHandler = _refused("a document type declaration")
        self.expat.EntityDeclHandler = _refused("an entity declaration")
        self.expat.ProcessingInstructionHandler = _refused("a processing instruction")
        self.expat.CommentHandler = _refused("a comment")
        self.expat.StartCdataSectionHandler = _refused("a CDATA section")

    def _declaration(self, version: str, encoding: str | None, _standalone: int) -> None:
        if version != "1.0" or (encoding or "utf-8").lower() != "utf-8":
            raise InvalidRequestError(f"XML: expected version 1.0 in UTF-8, got {version} in {encoding}")

    def _start(self, tag: str, pairs: list[str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH or len(pairs) > 2 * MAX_ATTRIBUTES:
            raise InvalidRequestError(
                f"XML: expected at most {MAX_ELEMENTS} elements, {MAX_DEPTH} deep, of {MAX_ATTRIBUTES} attributes"
            )
        above = self._open[-1].scope if self._open else {}
        attributes = list(zip(pairs[::2], pairs[1::2], strict=True))
        element = _element(tag, attributes, above)
        if self._open:
            self._open[-1].content.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, _tag: str) -> None:
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1].content.append(text)


def _refused(what: str) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise InvalidRequestError(f"XML: expected none of it, got {what}")

    return refuse


def _element(tag: str, pairs: list[tuple[str, str]], above: Mapping[str, str]) -> Element:
    declared = {name[6:]: uri for name, uri in pairs if _declares(name)}
    if any(not uri or prefix in {"xml", "xmlns"} for prefix, uri in declared.items()):
        raise InvalidRequestError(f"XML: expected namespaces with a name in {tag!r}, got none or a reserved prefix")
    scope = {**above, **declared} if declared else above
    attributes: dict[Name, str] = {}
    written: dict[Name, str] = {}
    for raw, value in pairs:
        if declared and _declares(raw):
            continue
        name = _expanded(raw, scope, "")
        if name in attributes:
            raise InvalidRequestError(f"XML: expected attribute {raw!r} once, got it again")
        attributes[name], written[name] = value, raw
    return Element(tag, _expanded(tag, scope, scope.get("", "")), scope, attributes, written)


def _declares(name: str) -> bool:
    return name.startswith("xmlns") and name[5:6] in {"", ":"}


def _expanded(raw: str, scope: Mapping[str, str], default: str) -> Name:
    prefix, colon, local = raw.rpartition(":")
    if not colon:
        return Name(default, local)
    if prefix not in scope or not local:
        raise InvalidRequestError(f"XML: expected a declared prefix, got {raw!r}")
    return Name(scope[prefix], local)


def _write(parts: list[str], element: Element, rendered: Mapping[str, str], without: Element | None) -> None:
    parts.append(f"<{element.tag}")
    if element.scope is not rendered:
        parts.extend(
            f' xmlns{":" if prefix else ""}{prefix}="{uri.translate(_ATTRIBUTE_ESCAPES)}"'
            for prefix, uri in sorted(element.scope.items())
            if rendered.get(prefix) != uri
        )
    parts.extend(
        f' {element.written[name]}="{element.attributes[name].translate(_ATTRIBUTE_ESCAPES)}"'
        for name in sorted(element.attributes)
    )
    parts.append(">")
    for one in element.content:
        if isinstance(one, str):
            parts.append(one.translate(_TEXT_ESCAPES))
        elif one is not without:
            _write(parts, one, element.scope, without)
    parts.append(f"</{element.tag}>")
