"""Row B2 of the fault matrix: many cases for everything that reads what a peer or ExaBGP said.

Without atheris: recorded and kept inputs, damaged by chance. `make test` runs a few hundred of
each; the row runs 50,000 in all and says so.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.fuzz import corpus
from tests.fuzz.registry import TARGETS

SHARES = {
    "exabgp-line": 20_000,
    "update-decoder": 12_000,
    "update-fields": 10_000,
    "exabgp-event": 6_000,
    "conversation": 2_500,
}
"""More of what takes less: a conversation is four milliseconds, a line a seventh of one."""
FEW = 40
"""The part of each that is run where nobody asked for the whole: one in so many."""


@pytest.mark.parametrize("name", SHARES)
def test_damaged_inputs_are_refused_in_words_or_taken_whole(name: str) -> None:
    """Whatever a target raises is a finding; some must be taken and some refused."""
    target = TARGETS[name]
    chance = random.Random(7606)
    inputs = [*target.seeds(), *corpus.read(name)]
    cases = SHARES[name] if os.environ.get("SLASH32_CHAOS") else SHARES[name] // FEW
    taken = 0
    for _ in range(cases):
        data = bytearray(chance.choice(inputs))
        for _edit in range(chance.randint(0, 3)):
            at = chance.randrange(len(data) + 1)
            words = chance.choice((b"", chance.randbytes(1), chance.randbytes(4), *target.tokens))
            data[at : at + chance.randint(0, 4)] = words
        taken += target.run(bytes(data))
    assert cases // 200 < taken < cases
    sys.stdout.write(f"measured: {name}: {cases:,} cases, {taken:,} of them taken\n")


def test_the_row_has_as_many_cases_as_it_owes() -> None:
    """50,000; a share that somebody made smaller is seen here."""
    assert sum(SHARES.values()) >= 50_000
