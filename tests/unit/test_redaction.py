"""What may stand in a log line, and what may not."""

from __future__ import annotations

import pytest

from shared.redaction import HIDDEN, redactor

SECRETS = [
    ("Authorization: Bearer abc.def-123", "abc.def-123"),
    ("{'authorization': 'Bearer abcdef123', 'accept': '*/*'}", "abcdef123"),
    ("[(b'authorization', b'Bearer abcdef123'), (b'host', b'x')]", "abcdef123"),
    ('{"x-api-key": "abcdef123"}', "abcdef123"),
    ("Cookie: session=abcdef123; other=1", "abcdef123"),
    ("sent Bearer abcdef123 to nobody", "abcdef123"),
    ("the key sk-proj-abcdef123456 is wrong", "abcdef123456"),
    ("token hf_abcdef123456", "abcdef123456"),
    ("redis://:pa55word@host:6379/0 is away", "pa55word"),
    ("rediss://user:pa55:word@host/0", "pa55:word"),
    ("redis+sentinel://user:pa55word@s1:26379,s2:26379/main/0", "pa55word"),
    ("GET https://images.example.com/a.png?X-Amz-Signature=abc&x=1 200", "abc&x=1"),
    ("GET /v1/files/f?token=abcdef", "abcdef"),
    ("GET /v1/files/f?a=1&sig=abcdef", "abcdef"),
    ("data:image/png;base64,aGVsbG8gd29ybGQ=", "aGVsbG8"),
    ("Input should be a list [type=list_type, input_value='a secret prompt, long', input_type=str]", "prompt"),
    ("[{'type': 'list_type', 'loc': ('body',), 'msg': 'no list', 'input': 'a secret prompt', 'url': 'x'}]", "prompt"),
    ("[{'msg': 'no list', 'input': {'a': 'a secret prompt'}}]", "prompt"),
    ("it is hunter2-hunter2!", "hunter2"),
]


@pytest.mark.parametrize(("line", "secret"), SECRETS)
def test_a_secret_is_taken_out_of_a_line(line: str, secret: str) -> None:
    shown = redactor(["hunter2-hunter2"])(line)
    assert secret not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "line",
    [
        "request req_001m820wtmxwr1fcj7zt6nyhr0n of worker w66214e38c97a340a: OK",
        "tenant key-0123456789abcdef waits in redis://127.0.0.1:6379/0",
        "refused /v1/chat/completions: 401 invalid_api_key: The API key is not valid.",
        "https://host/path, http://other:80/",
        "input: 3 tokens",
        "a short secret like to is found in too many words",
    ],
)
def test_what_is_no_secret_stays(line: str) -> None:
    assert redactor(["to"])(line) == line
