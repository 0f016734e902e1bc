"""Rows of a batch, made of what users have: prompts, objects, whole rows; every fault with its line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from cli.batches.rows import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Made, Wishes, make_rows
from shared.batches import MOST_ROWS


def made_of(source: str | bytes, **wishes: Any) -> tuple[Made, bytes]:
    target = io.BytesIO()
    data = source if isinstance(source, bytes) else source.encode()
    return make_rows(io.BytesIO(data), target, Wishes(**wishes), lambda: "only"), target.getvalue()


def rows_of(source: str | bytes, **wishes: Any) -> list[dict[str, Any]]:
    made, written = made_of(source, **wishes)
    assert not made.faults
    assert made.size_bytes == len(written)
    rows = [json.loads(line) for line in written.splitlines() if line]
    assert made.rows == len(rows)
    return rows


def faults_of(source: str | bytes, **wishes: Any) -> list[tuple[int, str]]:
    made, _ = made_of(source, **wishes)
    return [(fault.line, fault.message) for fault in made.faults]


def asked(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_a_prompt_a_line_becomes_a_row_of_the_chat_named_by_its_line() -> None:
    first, second = rows_of("What is a lane?\n\n  Tell me \u201cmore\u201d  \r\n")
    body = {"messages": asked("What is a lane?"), "model": "only"}
    assert first == {"custom_id": "row-1", "method": "POST", "url": CHAT, "body": body}
    assert second["custom_id"] == "row-3"
    assert second["body"]["messages"] == asked("Tell me \u201cmore\u201d")


def test_blank_lines_stay_so_that_the_server_counts_lines_as_the_user_does() -> None:
    _, written = made_of("a\n\nb")
    assert [bool(line) for line in written.split(b"\n")] == [True, False, True, False]


def test_the_fields_beside_a_prompt_are_parameters_and_win_over_what_is_wished_for_all() -> None:
    source = '{"prompt": "a", "temperature": 0, "max_completion_tokens": 5, "id": 7}\n{"prompt": "b"}\n'
    first, second = rows_of(source, max_tokens=9, body={"temperature": 1.5, "top_p": 0.5})
    assert first["custom_id"] == "7"
    assert first["body"]["temperature"] == 0
    assert "max_tokens" not in first["body"]
    assert first["body"]["top_p"] == 0.5
    assert second["body"]["temperature"] == 1.5
    assert second["body"]["max_tokens"] == 9


def test_a_row_that_is_complete_goes_out_to_the_byte() -> None:
    row = '{"url":"/v1/chat/completions",  "custom_id":"a","body":{"model":"m","messages":[],"x":1.0},"method":"POST"}'
    _, written = made_of(row)
    assert written == f"{row}\n".encode()


def test_what_a_whole_row_lacks_is_filled_in() -> None:
    (row,) = rows_of('{"body": {"messages": []}}', max_tokens=3)
    body = {"messages": [], "max_tokens": 3, "model": "only"}
    assert row == {"body": body, "custom_id": "row-1", "method": "POST", "url": CHAT}


def test_a_system_prompt_comes_first_unless_there_is_one() -> None:
    source = '{"messages": [{"role": "system", "content": "own"}]}\nhello\n{"prompt": "x", "system": "other"}\n'
    own, plain, other = (row["body"]["messages"] for row in rows_of(source, system="be kind"))
    assert own == [{"role": "system", "content": "own"}]
    assert plain == [{"role": "system", "content": "be kind"}, *asked("hello")]
    assert other[0] == {"role": "system", "content": "other"}


@pytest.mark.parametrize(
    ("endpoint", "line", "body"),
    [
        (COMPLETIONS, "once", {"prompt": "once", "max_tokens": 4}),
        (COMPLETIONS, '{"prompt": [1, 2]}', {"prompt": [1, 2], "max_tokens": 4}),
        (EMBEDDINGS, '{"input": ["a", "b"]}', {"input": ["a", "b"]}),
        (RESPONSES, "hi", {"input": "hi", "max_output_tokens": 4}),
        (RESPONSES, '{"messages": []}', {"input": [], "max_output_tokens": 4}),
    ],
)
def test_each_endpoint_gets_a_prompt_where_it_looks_for_it(endpoint: str, line: str, body: dict[str, Any]) -> None:
    (row,) = rows_of(line, endpoint=endpoint, max_tokens=4)
    assert row["url"] == endpoint
    assert row["body"] == {**body, "model": "only"}


def test_a_system_prompt_of_a_response_is_its_instructions() -> None:
    (row,) = rows_of("hi", endpoint=RESPONSES, system="be kind")
    assert row["body"]["instructions"] == "be kind"


def test_a_system_prompt_that_no_row_can_have_is_a_fault() -> None:
    assert "no place" in faults_of("once", endpoint=COMPLETIONS, system="be kind")[0][1]


def test_the_first_row_decides_what_a_batch_asks_for() -> None:
    source = '{"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}\nplain\n'
    made, written = made_of(source)
    assert made.endpoint == EMBEDDINGS
    assert json.loads(written.splitlines()[1])["body"]["input"] == "plain"


def test_a_line_in_quotes_is_a_json_text_unless_it_is_none() -> None:
    first, second = rows_of('"two\\nlines"\n"Stop!" he said.\n')
    assert first["body"]["messages"] == asked("two\nlines")
    assert second["body"]["messages"] == asked('"Stop!" he said.')


def test_plain_takes_every_line_as_it_stands() -> None:
    (row,) = rows_of('{"prompt": "x"}', plain=True)
    assert row["body"]["messages"] == asked('{"prompt": "x"}')


def test_a_byte_order_mark_is_no_part_of_a_prompt() -> None:
    (row,) = rows_of(b"\xef\xbb\xbfhello")
    assert row["body"]["messages"] == asked("hello")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{bad", "no JSON"),
        ('{"promt": "x"}', "no `prompt`"),
        ('{"prompt": "x", "messages": []}', "`prompt` and `messages`"),
        ('{"prompt": 3}', "`prompt` must be a text"),
        ('{"messages": "x"}', "list of objects"),
        ('{"input": "x"}', "no row for /v1/chat/completions"),
        ('{"body": []}', "`body` must be an object"),
        ('{"body": {}, "url": "/v1/embeddings"}', "one endpoint per batch"),
        ('{"prompt": "x", "custom_id": ""}', "`custom_id`"),
        ('{"prompt": "x", "custom_id": "row-1"}', "used in a line before"),
        (b"caf\xe9", "not UTF-8 at byte 4"),
    ],
)
def test_a_line_of_which_no_row_can_be_made_is_named(line: str | bytes, said: str) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    ((number, message),) = faults_of(b"fine\n" + data + b"\nfine, too\n")
    assert number == 2
    assert said in message


def test_an_input_alone_asks_for_an_endpoint_to_be_named() -> None:
    assert "--endpoint embeddings" in faults_of('{"input": "x"}')[0][1]


def test_an_empty_input_and_one_of_too_many_rows_are_faults() -> None:
    assert "empty" in faults_of("\n \n")[0][1]
    ((line, message),) = faults_of("x\n" * (MOST_ROWS + 1))
    assert line == MOST_ROWS + 1
    assert "split -l" in message


def test_a_thousand_faults_are_enough() -> None:
    assert len(faults_of("{\n" * 2_000)) == 1_000


def test_no_model_is_asked_for_when_every_row_names_one() -> None:
    def never() -> str:
        raise AssertionError("asked")

    made = make_rows(io.BytesIO(b'{"prompt": "x", "model": "m"}'), io.BytesIO(), Wishes(), never)
    assert made.rows == 1
