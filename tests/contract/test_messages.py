import pytest

from contract.messages import MessageError, decode_batch, decode_report, encode_batch, encode_report
from tests.contract.examples import REPORT, WINDOWS


def test_a_batch_comes_back_as_it_was():
    assert decode_batch(encode_batch(WINDOWS)) == WINDOWS


def test_a_report_comes_back_as_it_was():
    assert decode_report(encode_report(REPORT)) == REPORT


@pytest.mark.parametrize("data", [b"", b"\xc1", b"{}", encode_batch(WINDOWS)[:-1]])
def test_it_refuses_bytes_that_are_not_a_batch(data):
    with pytest.raises(MessageError, match="not a batch"):
        decode_batch(data)


def test_it_refuses_a_batch_of_another_schema():
    data = encode_batch(WINDOWS).replace(b"\xa6schema\x01", b"\xa6schema\x02")
    with pytest.raises(MessageError, match="batch schema 2"):
        decode_batch(data)


def test_it_refuses_a_report_of_another_schema():
    with pytest.raises(MessageError, match="report schema 2"):
        decode_report(encode_report(REPORT).replace(b'"schema":1', b'"schema":2'))


def test_it_refuses_bytes_that_are_not_a_report():
    with pytest.raises(MessageError, match="not an instance report"):
        decode_report(b'{"instance": 1}')
