"""A form fits a message only where the scanner would cut it at the same places into the same header."""

from hypothesis import given
from hypothesis import strategies as st

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.forms import FORMS_PER_LENGTH, Form, Forms
from hermetic.server.scanner import cut
from tests.server.test_codec import REQUEST


def form_of(message: bytes, plan: str = "plan") -> Form[str]:
    pieces = cut(message)
    assert pieces is not None
    return Form(message, pieces.id_span, pieces.raw_spans, range(len(pieces.raw)), plan)


@given(REQUEST)
def test_a_form_fits_its_own_message(request: pb.ModelInferRequest) -> None:
    message = request.SerializeToString()
    form = form_of(message)
    assert form.fits(message)
    assert message[form.id_start : form.id_end].decode() == request.id
    assert [message[start:end] for start, end in form.raw] == list(request.raw_input_contents)


@given(REQUEST, st.data())
def test_whatever_a_form_fits_is_cut_in_the_same_way(request: pb.ModelInferRequest, data: st.DataObject) -> None:
    message = bytearray(request.SerializeToString() or b"\x0a\x00")
    form, before = form_of(bytes(message)), cut(bytes(message))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    after = cut(bytes(message))
    same = (
        before is not None
        and after is not None
        and (after.header, after.id_span, after.raw_spans) == (before.header, before.id_span, before.raw_spans)
    )
    assert form.fits(bytes(message)) == same


def message(identifier: str, word: bytes = b"1234") -> bytes:
    return pb.ModelInferRequest(model_name="m", id=identifier, raw_input_contents=[word]).SerializeToString()


def test_another_id_and_other_tensors_are_the_same_form() -> None:
    forms: Forms[str] = Forms()
    forms.keep(form_of(message("a")), len(message("a")))
    assert forms.find(message("b", b"5678")) is not None
    assert forms.find(message("bb")) is None
    assert forms.find(message("b").replace(b"\x0a\x01m", b"\x0a\x01n")) is None


def test_tensors_come_in_the_order_of_the_plan() -> None:
    two = pb.ModelInferRequest(raw_input_contents=[b"first", b"second"]).SerializeToString()
    pieces = cut(two)
    assert pieces is not None
    form = Form(two, pieces.id_span, pieces.raw_spans, (1, 0), "plan")
    assert [two[start:end] for start, end in form.raw] == [b"second", b"first"]


def test_forms_are_bounded_and_the_oldest_of_a_length_gives_way() -> None:
    forms: Forms[str] = Forms()
    names = [chr(ord("a") + at) for at in range(FORMS_PER_LENGTH + 1)]
    messages = [message("1").replace(b"\x0a\x01m", b"\x0a\x01" + name.encode()) for name in names]
    for name, one in zip(names, messages, strict=True):
        forms.keep(form_of(one, name), len(one))
    found = [forms.find(one) for one in messages]
    assert found[0] is None
    assert [form.plan for form in found[1:] if form] == names[1:]
    forms.clear()
    assert forms.find(messages[-1]) is None
