"""The settings of a lane that can be changed in the running system: their names, what they may be, how they are kept.

They stand in the hash `lanes` of each pool as `<lane>.<setting>`. Where one stands there it goes before what replicas
and workers were started with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.errors import invalid_request
from shared.lanes import QUARANTINE, Lane

PAUSED = "paused"
"""`1`: nothing of the lane is started."""
DRAINING = "draining"
"""`1`: the lane takes nothing new."""
_MOST = 10**12
"""Whole numbers that scripts still add up without loss."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that an operator may set. `whole`: it must be an integer."""

    name: str
    what: str
    least: float
    most: float = _MOST
    whole: bool = True

    def parse(self, given: object) -> str:
        """As it is kept. Raises RequestError (400)."""
        pattern = r"\d{1,13}" if self.whole else r"\d{1,6}(\.\d{1,6})?"
        text = "" if isinstance(given, bool) else str(given).strip()
        if re.fullmatch(pattern, text, re.ASCII) is None or not self.least <= float(text) <= self.most:
            kind = "a whole number" if self.whole else "a number"
            message = f"{self.name} must be {kind} from {self.least:g} to {self.most:.15g}, not {given!r}."
            raise invalid_request(message, param=self.name)
        return str(int(text)) if self.whole else repr(float(text)).removesuffix(".0")


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("weight", "share of the starts under backlog, relative to the other lanes", 0.001, 1_000, whole=False),
        Setting("age_limit_ms", "age of the oldest request from which it goes first, at most one start in four", 0),
        Setting("max_requests", "most requests that may wait", 1),
        Setting("max_bytes", "most bytes of request bodies that may wait", 1),
        Setting("max_tokens", "most tokens of work that may wait", 1),
    )
}
"""By name, in the order in which they are shown."""
FIELDS = (*SETTINGS, PAUSED, DRAINING)
"""Everything that can stand behind the lane's name in the hash."""

PAUSE = {PAUSED: "1"}
DRAIN = {DRAINING: "1"}
RESUME = {PAUSED: "", DRAINING: ""}


def parse_lane(name: str) -> Lane:
    """The lane of that name. Raises RequestError (400)."""
    try:
        return Lane(name.strip().lower())
    except ValueError:
        pass
    lanes = ", ".join(Lane)
    if name == QUARANTINE:
        message = f"{name} is no lane: it holds requests that kill workers, and has no settings. Lanes: {lanes}."
    else:
        message = f"There is no lane {name!r}. Lanes: {lanes}."
    raise invalid_request(message, param="lane")


def parse_changes(given: Mapping[str, object]) -> dict[str, str]:
    """Settings as they are kept; None takes one back. Raises RequestError (400)."""
    if not given:
        raise invalid_request(f"No setting is named. Settings: {', '.join(SETTINGS)}.")
    known = [(_known(name), value) for name, value in given.items()]
    return {setting.name: "" if value is None else setting.parse(value) for setting, value in known}


def parse_assignments(words: Iterable[str]) -> dict[str, str]:
    """The same from `name=value` words. Raises RequestError (400)."""
    pairs: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise invalid_request(f"Say <setting>=<value>, not {word!r}. Settings: {', '.join(SETTINGS)}.")
        pairs[name.strip()] = value
    return parse_changes(pairs)


def _known(name: str) -> Setting:
    if name not in SETTINGS:
        settings = ", ".join(SETTINGS)
        raise invalid_request(f"There is no setting {name!r} of a lane. Settings: {settings}.", param=name)
    return SETTINGS[name]
