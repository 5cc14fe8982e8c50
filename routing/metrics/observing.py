"""The scrape: an Observation becomes Prometheus' text, together with the process's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from routing.metrics.families import Observation, families

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Scrape(Collector):
    """Answers scrapes with what ``observe`` sees at that moment."""

    def __init__(self, observe: Callable[[], Observation]) -> None:
        self._observe = observe
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known only with the values, and are each given once."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client."""
        return families(self._observe())

    def text(self) -> bytes:
        """The whole exposition, in the text format 0.0.4 that every scraper reads."""
        return generate_latest(self._registry)
