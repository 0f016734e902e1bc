"""How many files a process may have open: each stream is one."""

from __future__ import annotations

import resource

from scripts.bench.groups import BenchError

_SPARE = 500
_MOST = 65_536


def raise_limit() -> None:
    """Raises this process's limit, which its children inherit, as far as the hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_limit(streams: int) -> None:
    """Raises BenchError when a process may not have so many streams open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = streams + _SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        msg = (
            f"{streams} open streams need {needed} open files a process, and the hard limit is {hard}: raise it "
            f"(`ulimit -Hn {needed}` as root, LimitNOFILE= of a service, --ulimit nofile={needed} of a container), "
            "or ask for fewer with --streams"
        )
        raise BenchError(msg)
