"""The hostile inputs: what a client can send that nobody should. Each row says what must come back.

`DOOR` is refused by a replica and leaves nothing in Redis: bodies here, everything around them in `heads.py`, and
`KEYED` there, too. What is no HTTP at all is in `sockets.py`, what only an engine can refuse in `for_engines.py`. Long
bodies are made by expressions, so that the list can be read.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from tests.hostile.heads import ASKED, PATHS
from tests.hostile.rows import (
    BAD,
    CHAT,
    CLAUDE,
    LIMIT,
    MOST_BODY_BYTES,
    POSTS,
    RESPONSES,
    SAY,
    TEXT,
    Hostile,
    good,
    post,
    told,
)

# ---- bodies that no route takes: each row on every route

_BODIES: tuple[tuple[str, bytes], ...] = (
    ("nothing", b""),
    ("no JSON", b"hello"),
    ("JSON that is cut off", b'{"model": "sim-model", "mess'),
    ("JSON with more behind it", b'{"model": "sim-model"} {"model": "sim-model"}'),
    ("a list", b"[]"),
    ("null", b"null"),
    ("an empty object", b"{}"),
    ("broken UTF-8", b'{"model": "\xff"}'),
    ("a surrogate alone", b'{"model": "\\ud800"}'),
    ("2 000 lists, never closed", b"[" * 2000),
    ("101 levels", b'{"model": "sim-model", "x": ' + b"[" * 101 + b"]" * 101 + b"}"),
    ("50 000 levels", b'{"model": "sim-model", "x": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}"),
    ("NaN", b'{"model": "sim-model", "temperature": NaN}'),
    ("Infinity", b'{"model": "sim-model", "temperature": Infinity}'),
    ("a model that is a number", good("").replace(b'"sim-model"', b"7")),
)

# ---- headers that no route takes: each row on every route

_HEADERS: tuple[tuple[str, str, bytes, int, str], ...] = (
    ("a form", "Content-Type", b"application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ("gzip", "Content-Encoding", b"gzip", 415, "unsupported_media_type"),
    ("no such lane", "X-Priority-Lane", b"now", 400, BAD),
)

# ---- what reads as JSON and is none, once per kind

_SAME_EVERYWHERE = (
    post("a byte order mark", CHAT, b"\xef\xbb\xbf" + good(CHAT)),
    post("UTF-16", CHAT, good(CHAT).decode().encode("utf-16")),
    post("UTF-32", TEXT, good(TEXT).decode().encode("utf-32")),
    post("Latin-1", CHAT, '{"messages": [{"role": "user", "content": "über"}]}'.encode("latin-1")),
    post("an overlong slash", CHAT, b'{"messages": [{"role": "user", "content": "\xc0\xaf"}]}'),
    post("an overlong NUL", CHAT, b'{"messages": [{"role": "user", "content": "\xc0\x80"}]}'),
    post("a surrogate in UTF-8", CHAT, b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}'),
    post("beyond Unicode", CHAT, b'{"messages": [{"role": "user", "content": "\xf4\x90\x80\x80"}]}'),
    post("UTF-8 that is cut off", CHAT, b'{"messages": [{"role": "user", "content": "\xe2\x82"}]}'),
    post("a NUL in a string", CHAT, b'{"messages": [{"role": "user", "content": "a\x00b"}]}'),
    post("a line break in a string", CHAT, b'{"messages": [{"role": "user", "content": "a\nb"}]}'),
    post("NULs around it", CHAT, b"\x00\x00" + good(CHAT)),
    post("surrogates the wrong way round", CHAT, b'{"messages": [{"role": "user", "content": "\\udc00\\ud800"}]}'),
    post("half an escape", CHAT, b'{"messages": [{"role": "user", "content": "\\u12"}]}'),
    post("no such escape", CHAT, b'{"messages": [{"role": "user", "content": "\\x41"}]}'),
    post("single quotes", CHAT, b"{'messages': [{'role': 'user', 'content': 'x'}]}"),
    post("a comma too many", CHAT, b'{"messages": [{"role": "user", "content": "x"},]}'),
    post("a comment", CHAT, b'{"messages": [] /* none */}'),
    post("a hexadecimal number", CHAT, b'{"messages": [{"role": "user", "content": "x"}], "seed": 0x10}'),
    post("a number that begins with 0", CHAT, b'{"messages": [{"role": "user", "content": "x"}], "seed": 007}'),
    post("1e400", CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e400}'),
    post("-Infinity", CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}'),
    post("a number of 50 000 digits", CHAT, b'{"messages": 1' + b"0" * 50_000 + b"}"),
    post("YAML", CHAT, b"messages:\n- role: user\n  content: x\n"),
    post("XML", CHAT, b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'),
    post("msgpack", CHAT, b"\x81\xa8messages\x90"),
    post("a pickle", CHAT, b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93."),
    post("a bomb of gzip, not said to be one", CHAT, gzip.compress(b" " * 10_000_000)),
    post("40 000 keys that are the same", CHAT, b"{" + b'"a":1,' * 15_000 + b'"messages":[]}'),
)

# ---- media and encodings

_MEDIA = (
    *(
        told(f"{kind[:40]!r}", CHAT, "Content-Type", kind, 415, "unsupported_media_type")
        for kind in (
            b"", b"text/plain", b"text/json", b"application/jsonp", b"application/json/x", b"multipart/form-data",
            b"multipart/form-data; boundary=x", b"*/*", b"application/octet-stream", b"application/xml", b"\xff\xfe",
            b"text/html; application/json", b"a" * 5000,
        )
    ),
    *(
        Hostile(f"a bomb of {name}", "POST", TEXT, 415, "unsupported_media_type", bomb, (("Content-Encoding", coding),))
        for name, coding, bomb in (
            ("gzip", b"gzip", gzip.compress(b"[" * 50_000_000)),
            ("deflate", b"deflate", zlib.compress(b"[" * 50_000_000)),
            ("gzip in gzip", b"gzip, gzip", gzip.compress(gzip.compress(b" " * 50_000_000))),
        )
    ),
    *(
        told(f"encoded as {coding.decode()}", RESPONSES, "Content-Encoding", coding, 415, "unsupported_media_type")
        for coding in (b"br", b"zstd", b"x-gzip", b"aes128gcm", b"identity, gzip", b"compress", b"\\", b"utf-8")
    ),
)  # fmt: skip

# ---- too much

_HUGE = (
    *(post("a body over the limit", path, b" " * (MOST_BODY_BYTES + 1), 413, "request_too_large") for path in POSTS),
    post("400 texts", "/v1/embeddings", {"input": ["a"] * 400}, code=LIMIT),
    post("400 documents", "/rerank", {"query": "x", "documents": ["a"] * 400}, code=LIMIT),
    post("400 pairs", "/score", {"queries": "x", "documents": ["a"] * 400}, code=LIMIT),
    post("400 texts to classify", "/classify", {"input": ["a"] * 400}, code=LIMIT),
    post("2 049 messages", CHAT, {"messages": SAY * 2_049}, code=LIMIT),
    post("2 049 messages", CLAUDE, {"messages": SAY * 2_049, "max_tokens": 1}, code=LIMIT),
    post("2 049 messages to count", "/tokenize", {"messages": SAY * 2_049}, code=LIMIT),
    post("2 049 items", RESPONSES, {"input": SAY * 2_049}, code=LIMIT),
    post("129 choices", CHAT, {"messages": SAY, "n": 129}, code=LIMIT),
    post("2^63 choices", TEXT, {"prompt": "x", "n": 2**63}, code=LIMIT),
    post("10^300 choices", TEXT, {"prompt": "x", "n": 10**300}, code=LIMIT),
    post("15 000 prompts", TEXT, {"prompt": ["a"] * 15_000}, code=LIMIT),
    post("100 prompts, 100 choices", TEXT, {"prompt": ["a"] * 100, "n": 100}, code=LIMIT),
    post("5 stops", CHAT, {"messages": SAY, "stop": ["a"] * 5}, code=LIMIT),
    post("15 000 stops", TEXT, {"prompt": "x", "stop": ["a"] * 15_000}, code=LIMIT),
    post("15 000 stop sequences", CLAUDE, {"messages": SAY, "max_tokens": 1, "stop_sequences": ["a"] * 15_000},
          code=LIMIT),
    post("1 500 tools", CHAT, {"messages": SAY, "tools": [{"type": "function", "function": {"name": "f"}}] * 1_500},
          code=LIMIT),
    post("1 500 tools", CLAUDE, {"messages": SAY, "max_tokens": 1, "tools": [{"name": "f", "input_schema": {}}] * 1500},
         code=LIMIT),
    post("1 500 tools", RESPONSES, {"input": "x", "tools": [{"type": "function", "name": "f"}] * 1_500}, code=LIMIT),
    *(
        post("a schema of 30 kB", path, {**body, **wrapped}, code=LIMIT)
        for path, body, wrapped in (
            (CHAT, {"messages": SAY}, {"response_format": {"type": "json_schema", "json_schema": {"schema": "S"}}}),
            (CHAT, {"messages": SAY}, {"structured_outputs": {"json": "S"}}),
            (TEXT, {"prompt": "x"}, {"structured_outputs": {"json": "S"}}),
            (CLAUDE, {"messages": SAY, "max_tokens": 1}, {"output_config": {"format": {"schema": "S"}}}),
            (RESPONSES, {"input": "x"}, {"text": {"format": {"type": "json_schema", "schema": "S"}}}),
        )
        for wrapped in [json.loads(json.dumps(wrapped).replace('"S"', json.dumps({"enum": ["e" * 30_000]})))]
    ),
    *(
        post(f"a {name} of 40 kB", path, {**body, "structured_outputs": {name: given}}, code=LIMIT)
        for path, body in ((CHAT, {"messages": SAY}), (TEXT, {"prompt": "x"}))
        for name, given in (
            ("regex", "(a|" * 13_000), ("grammar", "root ::= root root\n" * 2_000), ("choice", ["c"] * 10_000),
        )
    ),
    *(post("what is no object", path, {**body, "structured_outputs": wrong})
      for path, body in ((CHAT, {"messages": SAY}), (TEXT, {"prompt": "x"})) for wrong in ("x", [], 5)),
    *(
        post("a prompt far over the context", path, {**body, name: text}, code="context_length_exceeded")
        for path, name, text, body in (
            (TEXT, "prompt", "a " * 5_000, {}),
            ("/generate", "prompt", "a " * 5_000, {}),
            (CHAT, "messages", [{"role": "user", "content": "a " * 5_000}], {}),
            (CLAUDE, "messages", [{"role": "user", "content": "a " * 5_000}], {"max_tokens": 1}),
            (TEXT, "prompt", [1] * 15_000, {}),
        )
    ),
)  # fmt: skip

# ---- wrong outlines

_WRONG: tuple[tuple[str, dict[str, Any]], ...] = (
    *((CHAT, {"messages": wrong}) for wrong in (None, "hi", 5, {}, [], True)),
    *((CLAUDE, {"max_tokens": 1, "messages": wrong}) for wrong in (None, "hi", 5, {}, [])),
    *(("/v1/messages/count_tokens", {"messages": wrong}) for wrong in (None, "hi", {}, [])),
    *((RESPONSES, {"input": wrong}) for wrong in (None, 5, {}, [], "", True)),
    *((RESPONSES, {"input": "x", name: wrong}) for name in ("stream", "store", "background") for wrong in ("yes", 1)),
    *((RESPONSES, {"input": "x", "metadata": wrong})
      for wrong in ([], "a", {"k": 1}, {"k": "v" * 513}, {"k" * 65: ""})),
    (RESPONSES, {"input": "x", "metadata": {str(key): "" for key in range(17)}}),
    (RESPONSES, {"input": "x", "previous_response_id": 7}),
    (RESPONSES, {"input": "x", "instructions": ["be", "brief"]}),
    (RESPONSES, {"input": "x", "conversation": "conv_1"}),
    (RESPONSES, {"input": "x", "background": True, "store": False}),
    (RESPONSES, {"messages": SAY}),
    (TEXT, {"prompt": None}),
    ("/generate", {"prompt": ""}),
    ("/generate", {"prompt": ["a"]}),
    ("/generate", {"prompt": "x", "stream": True}),
    *((path, {"prompt": "x", "messages": SAY, "input": "x", "max_tokens": 1, "stream": wrong})
      for path in (CHAT, TEXT, CLAUDE) for wrong in ("true", 1, [], {})),
    *((path, {"prompt": "x", "messages": SAY, "cache_salt": wrong}) for path in (CHAT, TEXT) for wrong in (7, ["a"])),
    *((path, {"input": []}) for path in ("/v1/embeddings", "/classify", "/pooling")),
    *((path, {"queries": "x"}) for path in ("/score", "/v1/score")),
    ("/pooling", {"data": {"data_format": "url", "data": "http://169.254.169.254/"}}),
    ("/pooling", {"data": {"data_format": "path", "data": "/etc/passwd"}}),
    ("/tokenize", {"messages": []}),
    *(("/detokenize", {"tokens": wrong}) for wrong in (None, "1", {}, 1)),
    *((CHAT, {"messages": SAY, "stream": True, "stream_options": {"include_timing": wrong}}) for wrong in ("x", 1, [])),
    *((CHAT, {"messages": SAY, "service_tier": wrong}) for wrong in ("now", 1, [], {})),
)  # fmt: skip


def _image(part: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}


_PARTS = (
    *(
        post(f"an image at {url[:40]}", CHAT, _image({"type": "image_url", "image_url": {"url": url}}))
        for url in (
            "file:///etc/passwd", "ftp://example.com/x.png", "gopher://127.0.0.1:6379/_FLUSHALL", "http://", "//x", "",
            "http://127.0.0.1:6379/", "http://user:password@10.0.0.1/", "javascript:1", "http://\u2488\u24ea/",
            "http://x:99999/", "\x00http://x/",
        )
    ),
    *(
        post(f"an image at {url[:40]}", CHAT, _image({"type": "image_url", "image_url": {"url": url}}), 422,
             "image_not_fetched")
        for url in (
            "http://[::1]/", "http://169.254.169.254/latest/meta-data/", "http://0x7f000001/", "http://2130706433/",
            "http://localhost/", "http://a b/", "http://127.1/", "http://[::ffff:127.0.0.1]/", "http://127.0.0.1/",
            "http://" + "a" * 3000 + "/",
        )
    ),
    *(
        post(f"a part of type {kind}", CHAT, _image({"type": kind, kind: "gAN9"}))
        for kind in ("prompt_embeds", "image_embeds", "audio_embeds", "image_pil")
    ),
    post("a video to fetch", CHAT, _image({"type": "video_url", "video_url": {"url": "http://127.0.0.1/"}})),
    post("somebody's cached image", CHAT, _image({"type": "image_url", "image_url": {"url": "data:,"}, "uuid": "a"})),
    post("a document to fetch", CLAUDE, {"max_tokens": 1, "messages": [{"role": "user", "content": [
        {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1/"}}]}]}),
)  # fmt: skip


def _door() -> Iterator[Hostile]:
    for path in POSTS:
        yield from (post(name, path, body) for name, body in _BODIES)
        yield from (told(name, path, header, value, status, code) for name, header, value, status, code in _HEADERS)
    for group in (_SAME_EVERYWHERE, _MEDIA, _HUGE, _PARTS, ASKED, PATHS):
        yield from group
    yield from (post(f"wrong: {json.dumps(body)[:60]}", path, body) for path, body in _WRONG)


DOOR = tuple(_door())
