"""Where webhooks may go that clients ask for: the operator's rules, checked when they are asked for and when they go.

The addresses are checked as those of images are (`reach.py`): a name is resolved once per connection, all its addresses
must be allowed, and the connection goes to one of those. Redirects are not followed.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx2

from api.reach import Hosts, Network

PORTS = {"http": 80, "https": 443}
_MOST_URL_CHARS = 2_048


@dataclass(frozen=True, slots=True)
class HookRules:
    """The settings `webhook_hosts`, `webhook_networks` and `webhook_http`.

    Attributes:
        hosts: to which; None: clients may not ask for webhooks.
        networks: that may be connected to although they are not public.
        http: whether http is allowed besides https.
    """

    hosts: Hosts | None
    networks: tuple[Network, ...] = ()
    http: bool = False

    def target(self, url: str) -> httpx2.URL:
        """A URL that a client may name, as far as it can be seen from the URL. Raises ValueError, for the client."""
        if self.hosts is None:
            raise ValueError("this server sends no webhooks to where clients say (--webhook-hosts)")
        target = url_of(url)
        if target.scheme != "https" and not self.http:
            raise ValueError("it must begin with https://")
        port = target.port or PORTS[target.scheme]
        if not self.hosts.allows(target.raw_host.decode("ascii").lower(), port):
            raise ValueError("webhooks are not sent to this host and port")
        return target


def url_of(text: str) -> httpx2.URL:
    """A URL to which a webhook can be sent. Raises ValueError, which does not repeat it."""
    try:
        url = httpx2.URL(text) if len(text) <= _MOST_URL_CHARS else None
    except httpx2.InvalidURL:
        url = None
    if url is None or url.scheme not in PORTS or not url.raw_host:
        raise ValueError("it must be an https URL with a host")
    if url.userinfo:
        raise ValueError("it must not have a user or a password in it")
    return url
