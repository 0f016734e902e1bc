"""Webhooks need nobody to be signed, and their rules ask nobody."""

from __future__ import annotations

import base64
import json
import time

import openai
import pytest

from api.hooks import HookRules, url_of
from api.reach import hosts_of
from batch.settings import BatchSettings
from shared.errors import ConfigurationError
from shared.settings import read_settings
from shared.webhooks import Event, event_of, key_of, keys_of, signed
from tests.support.receivers import OTHER_SECRET, SECRET


class Known(Event):
    """The event of the vector, whose body is not one of ours."""

    @property
    def body(self) -> bytes:
        return b'{"test": 2432232314}'


def test_the_signature_is_that_of_the_vector_of_standard_webhooks() -> None:
    event = Known("msg_p5jXN8AQM9LWM0D4loKWxJek", "", 0, "")
    assert signed(event, [key_of(SECRET)], 1614265330) == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
def test_openais_sdk_takes_it_with_either_secret_while_one_is_replaced_and_with_no_other(secret: str) -> None:
    event = event_of("batch.failed", "batch_1", 1_774_000_000)
    headers = signed(event, keys_of(f"{SECRET}, {OTHER_SECRET}"), int(time.time()))
    client = openai.OpenAI(api_key="none")
    told = client.webhooks.unwrap(event.body, headers, secret=secret)
    assert isinstance(told, openai.types.webhooks.BatchFailedWebhookEvent)
    assert (told.id, told.object, told.created_at, told.data.id) == (event.id, "event", 1_774_000_000, "batch_1")
    wrong = "whsec_" + base64.b64encode(b"x" * 24).decode()
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(event.body, headers, secret=wrong)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(event.body.replace(b"batch_1", b"batch_2"), headers, secret=secret)


def test_an_event_has_one_id_and_different_ones_have_different_ids() -> None:
    assert event_of("batch.failed", "batch_1", 1) == event_of("batch.failed", "batch_1", 1)
    ids = {event_of(kind, name, 1).id for kind in ("batch.failed", "batch.expired") for name in ("b1", "b2")}
    assert len(ids) == 4
    first, later = event_of("batch.failed", "batch_1", 1), event_of("batch.failed", "batch_1", 2)
    assert json.loads(first.body)["id"] == json.loads(later.body)["id"] == first.id


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_no base64 at all!", "whsec_ü"]
)
def test_what_is_no_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="must be whsec_") as caught:
        key_of(secret)
    assert not secret.removeprefix("whsec_") or secret.removeprefix("whsec_") not in str(caught.value)


def test_clients_may_name_receivers_only_where_the_operator_lets_them() -> None:
    with pytest.raises(ValueError, match="--webhook-hosts"):
        HookRules(None).target("https://example.com/")
    some = HookRules(hosts_of("hooks.example.com, *.example.org, intern:9000"))
    assert str(some.target("https://hooks.example.com/a?b")) == "https://hooks.example.com/a?b"
    assert some.target("https://x.example.org/").host == "x.example.org"
    assert some.target("https://intern:9000/").port == 9000
    for url in (
        "http://hooks.example.com/",
        "https://hooks.example.com:8443/",
        "https://example.com/",
        "https://user:word@hooks.example.com/",
        "ftp://hooks.example.com/",
        "https:///",
        "hooks.example.com",
        "https://hooks.example.com/" + "x" * 2_048,
    ):
        with pytest.raises(ValueError, match=r"it must|not sent"):
            some.target(url)
    assert HookRules(hosts_of("any"), http=True).target("http://example.com/").scheme == "http"


def test_an_operators_receiver_needs_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="PENSTOCK_WEBHOOK_SECRET"):
        read_settings(BatchSettings, ["--webhook-url", "https://example.com/"], "test")
    monkeypatch.setenv("PENSTOCK_WEBHOOK_SECRET", "whsec_thisisnosecretofours")
    with pytest.raises(ConfigurationError) as caught:
        read_settings(BatchSettings, ["--webhook-url", "https://example.com/"], "test")
    assert "thisisnosecretofours" not in str(caught.value)
    monkeypatch.setenv("PENSTOCK_WEBHOOK_SECRET", SECRET)
    settings = read_settings(BatchSettings, ["--webhook-url", "https://example.com/"], "test")
    assert len(settings.webhook_keys) == 1
    assert SECRET not in repr(settings)
    assert sum(settings.webhook_pauses_s) < 86_400
    with pytest.raises(ConfigurationError, match="webhook-url"):
        read_settings(BatchSettings, ["--webhook-url", "example.com"], "test")
    with pytest.raises(ConfigurationError, match="webhook-retry-s"):
        read_settings(BatchSettings, ["--webhook-retry-s", "1,x"], "test")
    assert url_of("http://10.0.0.1/").host == "10.0.0.1", "an operator may name whatever there is"
