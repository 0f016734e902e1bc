"""Hostile headers, paths, methods and parameters, and those of the routes that want a key."""

from __future__ import annotations

from api.surface import BY_PATH
from tests.hostile.rows import BAD, CHAT, MOST_BODY_BYTES, RESPONSES, TEXT, Hostile, good, post, told

_KEYS = (b"", b'""', b"a" * 256, b"two words", b"\xc3\xa4", b"tab\there", b'"' + b"a" * 256 + b'"')
_TIMEOUTS = (b"", b"-1", b"0", b"1.5", b"1e3", b"soon", b"9" * 16, b"0x10", b"1;2", "٣".encode(), b"NaN")
_DEADLINES = (
    b"", b"-1", b"0", b"1767225600", b"tomorrow", b"2030-01-31", b"2030-01-31T12:00:00", b"2030-02-31T12:00:00Z",
    b"9" * 16, b"2030-01-31T25:00:00Z", b"Thu, 31 Jan 2030 12:00:00 GMT", b"\xff", b"99999-01-01T00:00:00Z",
)  # fmt: skip
ASKED = (
    *(told(f"the key {key[:20]!r}", CHAT, "Idempotency-Key", key) for key in _KEYS),
    *(told(f"the key {key[:20]!r}", RESPONSES, "Idempotency-Key", key) for key in _KEYS[:3]),
    *(told(f"the mode {mode!r}", TEXT, "Idempotency-Mode", mode) for mode in (b"", b"Strict", b"yes", b"\xff")),
    *(told(f"gone: {way!r}", TEXT, "X-On-Disconnect", way) for way in (b"", b"stay", b"CANCEL", b"\xff")),
    *(told(f"a timeout of {text[:20]!r}", CHAT, "X-Request-Timeout-Ms", text) for text in _TIMEOUTS),
    *(told(f"a deadline of {text[:30]!r}", CHAT, "X-Request-Deadline", text) for text in _DEADLINES),
    *(told(f"the lane {lane[:20]!r}", CHAT, "X-Priority-Lane", lane)
      for lane in (b"", b"quarantine", b"interactive,batch", b"\xff", b"../batch", b"a" * 5_000)),
)  # fmt: skip

# ---- paths, methods, parameters

PATHS = (
    *(
        Hostile(name, "GET", target, 404, "not_found")
        for name, target in (
            ("nothing is there", "/no/such/path"),
            ("below a route", "/v1/messages/nothing"),
            ("a byte that is no text, and NUL", "/%ff%00"),
            ("a forged line of the log", "/a%0aforged%20line"),
            ("out of the root", "/../../etc/passwd"),
            ("out of the root, encoded", "/%2e%2e/%2e%2e/etc/passwd"),
            ("out of the root, with backslashes", "/..%5c..%5cetc%5cpasswd"),
            ("an overlong way out", "/%c0%ae%c0%ae/etc/passwd"),
            ("two slashes", "//v1/models"),
            ("a slash too many", "/v1//requests"),
            ("other letters", "/V1/MODELS"),
            ("parameters of the path", "/v1/requests;jsessionid=1"),
            ("NUL behind the route", "/v1/requests%00"),
            ("a long path", "/" + "a" * 8_000),
            ("a broken escape", "/%zz%"),
            ("a template", "/{{7*7}}/${jndi:ldap://x}"),
            ("no id", "/v1/requests/req_0_" + "z" * 5_000),
            ("NUL as an id", "/v1/requests/%00"),
            ("a key of Redis as an id", "/v1/requests/ps:%7Bsim.0%7D:r:x"),
            ("a line break as an id", "/v1/requests/req_%0d%0aFLUSHALL"),
            ("no text as an id", "/v1/requests/%ff%fe"),
            ("a star as an id", "/v1/requests/*"),
            ("somebody's events", "/v1/requests/req_0_4f1c/events"),
            ("no response", "/v1/responses/resp_%00"),
            ("no text as a response", "/v1/responses/%ff"),
            ("a long response", "/v1/responses/resp_" + "0" * 5_000),
            ("a response's items", "/v1/responses/x/input_items"),
            ("a response out of the root", "/v1/responses/..%2f..%2frequests"),
        )
    ),
    *(
        Hostile(name, "GET", f"/v1/models/{model}", 404, "model_not_found")
        for name, model in (("NUL as a model", "%00"), ("no text as a model", "%ff"), ("a way out", "..%2f..%2fetc"))
    ),
    post("a forged line as a model", TEXT, {"prompt": "x", "model": "\nforged line"}, 404, "model_not_found"),
    post("NUL as a model", TEXT, {"prompt": "x", "model": "\0"}, 404, "model_not_found"),
    post("a long model", TEXT, {"prompt": "x", "model": "m" * 50_000}, 404, "model_not_found"),
    post("a tag of Redis as a model", TEXT, {"prompt": "x", "model": "{sim}.0}:q"}, 404, "model_not_found"),
    *(
        Hostile(f"{name} as a parameter", "GET", target, 400, BAD)
        for name, target in (
            ("0", "/v1/requests?limit=0"),
            ("10^100", "/v1/requests?limit=" + "9" * 100),
            ("no number", "/v1/requests?limit=ten"),
            ("NaN", "/v1/requests?limit=NaN"),
            ("no such state", "/v1/requests?state=gone"),
            ("no such lane", "/v1/requests?lane=fast"),
            ("no page", "/v1/requests?after=%00"),
            ("no text", "/v1/requests?after=%ff%fe"),
            ("a forged page", "/v1/requests?after=eyJhIjoxfQ"),
            ("a long page", "/v1/requests?after=" + "A" * 8_000),
            ("maybe", "/v1/requests/req_0_4f1c?partial=maybe"),
            ("-2", "/v1/responses/resp_0?stream=true&starting_after=-2"),
            ("no order", "/v1/responses/resp_0/input_items?order=random"),
            ("101", "/v1/responses/resp_0/input_items?limit=101"),
        )
    ),
    *(
        Hostile(f"the cursor {cursor[:20]!r}", "GET", "/v1/requests/req_0_4f1c/events", 400, "invalid_cursor", b"",
                (("Last-Event-ID", cursor),))
        for cursor in (b"-1", b"abc", b"1-", b"9" * 16, b"1-zzzzzzz", b"1 2", b"\xff", b"4711-9F3A01", b"0x10",
                       b"a" * 9_000)
    ),
    *(Hostile("the wrong method", "GET", path, 405, "method_not_allowed") for path in BY_PATH),
    *(
        Hostile("the wrong method", method, path, 405, "method_not_allowed")
        for method, path in (
            ("PUT", CHAT), ("DELETE", CHAT), ("PATCH", TEXT), ("OPTIONS", CHAT), ("TRACE", CHAT),
            ("PROPFIND", CHAT), ("PUT", RESPONSES), ("POST", "/v1/models"), ("DELETE", "/v1/models/x"),
            ("POST", "/metrics"), ("DELETE", "/v1/requests"), ("PUT", "/v1/requests/x"),
            ("POST", "/v1/requests/x/events"), ("PURGE", "/livez"),
        )
    ),
    *(
        Hostile("no such thing", method, path, 404, "not_found")
        for method, path in (
            ("DELETE", "/v1/requests/%00"), ("POST", "/v1/requests/%ff/cancel"), ("DELETE", "/v1/responses/%ff"),
            ("POST", "/v1/responses/%00/cancel"),
        )
    ),
    *(
        Hostile("no admin key is set", method, path, 403, "admin_closed", content)
        for method, path, content in (
            ("GET", "/v1/admin/lanes", b""), ("GET", "/v1/admin/dlq", b""), ("DELETE", "/v1/admin/dlq", b""),
            ("POST", "/v1/admin/lanes/batch/purge", b""), ("PATCH", "/v1/admin/lanes/batch", b'{"weight": 1}'),
            ("PATCH", "/v1/admin/lanes/batch", b"[" * 50_000),
        )
    ),
)  # fmt: skip


_ADMIN = "/v1/admin"
KEYED: tuple[Hostile, ...] = (
    *(
        Hostile(f"the key {value[:20]!r}", method, path, 401, "invalid_api_key", content, ((header, value),))
        for method, path, content in (
            ("POST", CHAT, good(CHAT)),
            ("GET", "/v1/requests", b""),
            ("PATCH", f"{_ADMIN}/lanes/batch", b"{"),
            ("POST", f"{_ADMIN}/lanes/batch/drain", b""),
            ("DELETE", f"{_ADMIN}/dlq", b""),
        )
        for header, value in (
            ("Authorization", b""), ("Authorization", b"Bearer"), ("Authorization", b"Bearer alph\xe4"),
            ("Authorization", b"Basic YWxwaGE6"), ("Authorization", b"Bearer " + b"a" * 9_000),
            ("X-API-Key", b""), ("X-API-Key", b"\xff"), ("X-API-Key", b"alpha,beta"),
        )
    ),
    *(
        Hostile(name, method, _ADMIN + path, status, code, content, (("X-API-Key", b"boss"),))
        for name, method, path, status, code, content in (
            ("no such lane", "POST", "/lanes/fast/pause", 400, BAD, b""),
            ("quarantine", "POST", "/lanes/quarantine/purge", 400, BAD, b""),
            ("NUL as a lane", "POST", "/lanes/%00/drain", 400, BAD, b""),
            ("no body", "PATCH", "/lanes/batch", 400, BAD, b""),
            ("a list", "PATCH", "/lanes/batch", 400, BAD, b"[]"),
            ("an empty object", "PATCH", "/lanes/batch", 400, BAD, b"{}"),
            ("no JSON", "PATCH", "/lanes/batch", 400, BAD, b"{"),
            ("NaN", "PATCH", "/lanes/batch", 400, BAD, b'{"weight": NaN}'),
            ("1e400", "PATCH", "/lanes/batch", 400, BAD, b'{"weight": 1e400}'),
            ("a text as a weight", "PATCH", "/lanes/batch", 400, BAD, b'{"weight": "much"}'),
            ("a negative weight", "PATCH", "/lanes/batch", 400, BAD, b'{"weight": -1}'),
            ("true as a weight", "PATCH", "/lanes/batch", 400, BAD, b'{"weight": true}'),
            ("a list as a bound", "PATCH", "/lanes/batch", 400, BAD, b'{"max_requests": []}'),
            ("a huge bound", "PATCH", "/lanes/batch", 400, BAD, b'{"max_requests": 1' + b"0" * 400 + b"}"),
            ("no such setting", "PATCH", "/lanes/batch", 400, BAD, b'{"batch.weight": 1}'),
            ("a flag of ours", "PATCH", "/lanes/batch", 400, BAD, b'{"paused": 1}'),
            ("5 000 levels", "PATCH", "/lanes/batch", 400, BAD, b'{"weight": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
            ("too much", "PATCH", "/lanes/batch", 413, "request_too_large", b" " * (MOST_BODY_BYTES + 1)),
            ("no such model", "POST", "/lanes/batch/pause?model=%00", 404, "model_not_found", b""),
            ("an age that is no number", "POST", "/lanes/batch/purge?older_than_s=x", 400, BAD, b""),
            ("a negative age", "POST", "/lanes/batch/purge?older_than_s=-1", 400, BAD, b""),
            ("an endless age", "POST", "/lanes/batch/purge?older_than_s=inf", 400, BAD, b""),
            ("an age that is NaN", "POST", "/lanes/batch/purge?older_than_s=nan", 400, BAD, b""),
            ("0 letters", "GET", "/dlq?limit=0", 400, BAD, b""),
            ("no letter", "GET", "/dlq/1-1", 404, "not_found", b""),
            ("NUL as a letter", "GET", "/dlq/%00", 404, "not_found", b""),
            ("a range as a letter", "DELETE", "/dlq/-", 404, "not_found", b""),
            ("no text as a letter", "POST", "/dlq/%ff/redrive", 404, "not_found", b""),
        )
    ),
)  # fmt: skip
"""For a replica with the API key `alpha` and the admin key `boss`."""
