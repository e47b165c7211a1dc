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


class Shape(NamedTuple):
    """What elements of one tag and one list of attributes have in common; worked out once for all of them."""

    name: Name
    names: tuple[Name, ...]  # of the attributes, as they stand there
    order: tuple[int, ...]  # the canonical one of the attributes
    template: str  # of all attributes in canonical order, with %s for each value: no name has a %
    declares: bool  # it declares namespaces, and is none of an element's before these have been taken


class Scope:
    """Namespaces in scope (prefix, "" for the default one -> namespace), with the shapes that were met in it."""

    __slots__ = ("_shapes", "namespaces")

    def __init__(self, namespaces: Mapping[str, str]) -> None:
        """Begin without shapes."""
        self.namespaces = namespaces
        self._shapes: dict[tuple[str, tuple[str, ...]], Shape] = {}

    def shape(self, tag: str, written: tuple[str, ...]) -> Shape:
        """The shape of an element as written; raises `InvalidRequestError`."""
        found = self._shapes.get((tag, written))
        if found is None:
            found = self._shapes[tag, written] = self._made(tag, written)
        return found

    def _made(self, tag: str, written: tuple[str, ...]) -> Shape:
        if any(map(_declares, written)):
            return _DECLARES
        names = tuple(self._expanded(one, "") for one in written)
        if len(set(names)) != len(names):
            raise InvalidRequestError(f"XML: expected each attribute of {tag!r} once, got one again: {written}")
        order = tuple(sorted(range(len(names)), key=names.__getitem__))
        template = "".join(f' {written[at]}="%s"' for at in order)
        return Shape(self._expanded(tag, self.namespaces.get("", "")), names, order, template, declares=False)

    def _expanded(self, raw: str, default: str) -> Name:
        prefix, colon, local = raw.rpartition(":")
        if not colon:
            return Name(default, local)
        if prefix not in self.namespaces or not local:
            raise InvalidRequestError(f"XML: expected a declared prefix, got {raw!r}")
        return Name(self.namespaces[prefix], local)


_DECLARES: Final = Shape(Name("", ""), (), (), "", declares=True)


@dataclass(eq=False, slots=True)
class Element:
    """One element, with the namespaces in its scope."""

    tag: str  # as written, with its prefix
    shape: Shape
    scope: Scope
    attributes: Mapping[Name, str]  # in the order in which they are written
    content: "list[Element | str]" = field(default_factory=list)
    children: "list[Element]" = field(default_factory=list)  # the elements directly inside

    @property
    def name(self) -> Name:
        """The expanded name."""
        return self.shape.name

    @property
    def text(self) -> str:
        """The text directly inside."""
        return "".join(one for one in self.content if isinstance(one, str))

    def walk(self) -> "Iterator[Element]":
        """This element and all inside."""
        waiting = [self]
        while waiting:
            one = waiting.pop()
            yield one
            waiting.extend(reversed(one.children))


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
        self._outside = Scope({})
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
        above = self._open[-1] if self._open else None
        element = _element(tag, pairs, self._outside if above is None else above.scope)
        if above is None:
            self.root = element
        else:
            above.content.append(element)
            above.children.append(element)
        self._open.append(element)

    def _end(self, _tag: str) -> None:
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1].content.append(text)


def _refused(what: str) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise InvalidRequestError(f"XML: expected none of it, got {what}")

    return refuse


def _element(tag: str, pairs: list[str], scope: Scope) -> Element:
    written, values = tuple(pairs[::2]), pairs[1::2]
    shape = scope.shape(tag, written)
    if shape.declares:
        declared = {one[6:]: uri for one, uri in zip(written, values, strict=True) if _declares(one)}
        if any(not uri or prefix in {"xml", "xmlns"} for prefix, uri in declared.items()):
            raise InvalidRequestError(f"XML: expected namespaces with a name in {tag!r}, got none or a reserved prefix")
        scope = Scope({**scope.namespaces, **declared})
        values = [value for one, value in zip(written, values, strict=True) if not _declares(one)]
        shape = scope.shape(tag, tuple(one for one in written if not _declares(one)))
    return Element(tag, shape, scope, dict(zip(shape.names, values, strict=True)))


def _declares(name: str) -> bool:
    return name.startswith("xmlns") and name[5:6] in {"", ":"}


def _write(parts: list[str], element: Element, rendered: Mapping[str, str], without: Element | None) -> None:
    parts.append(f"<{element.tag}")
    namespaces, shape = element.scope.namespaces, element.shape
    if namespaces is not rendered:
        parts.extend(
            f' xmlns{":" if prefix else ""}{prefix}="{uri.translate(_ATTRIBUTE_ESCAPES)}"'
            for prefix, uri in sorted(namespaces.items())
            if rendered.get(prefix) != uri
        )
    if shape.order:
        values = list(element.attributes.values())
        if any(map("".join(values).__contains__, '&<"\t\n\r')):
            values = [one.translate(_ATTRIBUTE_ESCAPES) for one in values]
        parts.append(shape.template % tuple([values[at] for at in shape.order]))
    parts.append(">")
    for one in element.content:
        if isinstance(one, str):
            parts.append(one.translate(_TEXT_ESCAPES))
        elif one is not without:
            _write(parts, one, namespaces, without)
    parts.append(f"</{element.tag}>")
