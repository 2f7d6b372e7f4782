"""What the proxy did, as numbers, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmstash.stash import Stash

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Metrics:
    """Counters of one process. Belongs to one event loop.

    Attributes:
        requests: By (result, reason): `hit`, `miss`, `bypass`, `error`.
        upstream: Answers of the server, by status.
        retries: Requests that were sent again.
        upstream_seconds: What the server took for whole answers.
        aloft: Questions that the server is answering.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    upstream: Counter[int] = field(default_factory=Counter)
    retries: int = 0
    upstream_seconds: float = 0.0
    aloft: int = 0

    def text(self, stash: Stash) -> str:
        """Return all of them, and what the stash says of itself."""
        stats, info = stash.stats, stash.info()
        lines: list[str] = []

        def say(name: str, kind: str, what: str, *samples: tuple[str, float]) -> None:
            lines.append(f"# HELP lmstash_{name} {what}")
            lines.append(f"# TYPE lmstash_{name} {kind}")
            lines.extend(f"lmstash_{name}{labels} {value:.17g}" for labels, value in samples)

        requests = [
            (f'{{result="{result}",reason="{reason}"}}', n) for (result, reason), n in sorted(self.requests.items())
        ]
        statuses = [(f'{{status="{status}"}}', n) for status, n in sorted(self.upstream.items())]
        say("proxy_requests_total", "counter", "Requests by what became of them.", *requests)
        say("proxy_upstream_answers_total", "counter", "Answers of the upstream server.", *statuses)
        say("proxy_upstream_retries_total", "counter", "Requests sent again.", ("", self.retries))
        say("proxy_upstream_seconds_total", "counter", "Time of whole answers.", ("", self.upstream_seconds))
        say("proxy_flights", "gauge", "Questions under way upstream.", ("", self.aloft))
        say("seconds_saved_total", "counter", "Computing that hits have saved.", ("", stats.seconds_saved))
        say("entries", "gauge", "Entries of the stash.", ("", info.entries))
        say("bytes", "gauge", "What the stash takes.", ("", info.physical_bytes))
        return "\n".join(lines) + "\n"
