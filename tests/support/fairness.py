"""What happened in the lanes of a pool, in order, and the bounds that fair queueing and stride scheduling promise.

Service is counted in tokens of cost. Somebody is backlogged at a pick when a request of theirs waited just before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

Name = TypeVar("Name", str, tuple[str, str])
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Sent:
    """A request."""

    rid: str
    lane: str
    tenant: str
    cost: int


@dataclass(slots=True)
class History:
    """Arrivals and picks. `weights`: of the lanes."""

    weights: dict[str, float]
    waiting: dict[str, Sent] = field(default_factory=dict)
    events: list[tuple[str, Sent]] = field(default_factory=list)

    def arrived(self, sent: Sent) -> None:
        """It waits from now on."""
        self.waiting[sent.rid] = sent
        self.events.append(("arrival", sent))

    def picked(self, rid: str) -> Sent:
        """It was given to a worker."""
        sent = self.waiting.pop(rid)
        self.events.append(("pick", sent))
        return sent

    @property
    def sent(self) -> list[Sent]:
        """All requests, in the order of their arrival."""
        return [sent for what, sent in self.events if what == "arrival"]


def _gap(history: History, pair: tuple[Hashable, Hashable], who: Callable[[Sent], Hashable]) -> float:
    """The most by which the service of two, over the weight of its lane, parts while both wait."""
    waits = dict.fromkeys(pair, 0)
    ahead = low = high = most = 0.0
    for what, sent in history.events:
        name = who(sent)
        if what == "arrival":
            if name in waits:
                waits[name] += 1
            continue
        if name in waits:
            if all(waits.values()):
                ahead += (1 if name == pair[0] else -1) * sent.cost / history.weights[sent.lane]
                low, high = min(low, ahead), max(high, ahead)
                most = max(most, high - low)
            waits[name] -= 1
            if not waits[name]:
                ahead = low = high = 0.0
    return most


def unfair_tenants(history: History) -> Iterator[str]:
    """Pairs of tenants of one lane whose service parts by more than the dearest request of each (SFQ's bound)."""
    dearest = _dearest(history, lambda sent: (sent.lane, sent.tenant))
    for one, other in combinations(sorted(dearest), 2):
        if one[0] == other[0]:
            gap, most = (
                _gap(history, (one, other), lambda sent: (sent.lane, sent.tenant)),
                dearest[one] + dearest[other],
            )
            if gap > most + _ROUNDING:
                yield f"{one} and {other} part by {gap}, at most {most}"


def unfair_lanes(history: History) -> Iterator[str]:
    """Pairs of lanes whose service over weight parts by more than the dearest request over weight of each."""
    dearest = _dearest(history, lambda sent: sent.lane)
    for one, other in combinations(sorted(dearest), 2):
        gap, most = _gap(history, (one, other), lambda sent: sent.lane), dearest[one] + dearest[other]
        if gap > most + _ROUNDING:
            yield f"{one} and {other} part by {gap}, at most {most}"


def _dearest(history: History, who: Callable[[Sent], Name]) -> dict[Name, float]:
    """The dearest request of each, over the weight of its lane."""
    found: dict[Name, float] = defaultdict(float)
    for sent in history.sent:
        found[who(sent)] = max(found[who(sent)], sent.cost / history.weights[sent.lane])
    return found


def waited_too_long(history: History) -> Iterator[str]:
    """Requests before which more was served than `most_before` says."""
    for at, (what, sent) in enumerate(history.events):
        if what == "arrival":
            before, bound = _served_before(history, at, sent), most_before(history, at, sent)
            if before > bound + _ROUNDING:
                yield f"{sent} came after {before} tokens of others, at most {bound}"


def _served_before(history: History, at: int, sent: Sent) -> int:
    served = 0
    for what, other in history.events[at + 1 :]:
        if what == "pick":
            if other == sent:
                return served
            served += other.cost
    return served


def most_before(history: History, at: int, sent: Sent) -> float:
    """The most tokens that are served between the arrival of a request, event number `at`, and its pick.

    In its lane: with B the tokens that its tenant has waiting, C the dearest request of the lane and N the most
    requests that wait there at once, 2 N (B + 2 C). What its tenant asked for before puts the request B + C behind the
    virtual time at most; each of at most N tenants gets that much before it, and one request more. Newcomers start at
    the virtual time; that grows by a tenant's part of what is served, so as much again can go before it until they
    come behind it. Of another lane: as much more as its weight says, and one request.
    """
    waiting: dict[str, Sent] = {}
    own, most_waiting, dearest = 0, 0, defaultdict(int)
    for number, (what, other) in enumerate(history.events):
        dearest[other.lane] = max(dearest[other.lane], other.cost)
        if what == "arrival":
            if number == at:
                own = sum(each.cost for each in waiting.values() if each.tenant == sent.tenant)
            if other.lane == sent.lane:
                waiting[other.rid] = other
        else:
            waiting.pop(other.rid, None)
            if number > at and other == sent:
                break
        most_waiting = max(most_waiting, len(waiting)) if number >= at else most_waiting
    in_lane = 2 * most_waiting * (own + 2 * dearest[sent.lane])
    weights, others = history.weights, [lane for lane in dearest if lane != sent.lane]
    per_weight = (in_lane + dearest[sent.lane]) / weights[sent.lane]
    return in_lane + sum(weights[lane] * per_weight + dearest[lane] for lane in others)
