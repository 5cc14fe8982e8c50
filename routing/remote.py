"""What becomes of all that peers say: one decision for prefixes that no rule can tell apart. Pure.

A cluster's table has a hundred thousand prefixes and a few hundred answers: whose block, in which
pool, with which attributes of which peers. ``Decisions`` asks the rules (``learning.Learner``) once
for each such kind of prefix and keeps the answer; a prefix then costs a look-up.

That is the same as asking for each prefix by itself as long as none has a say in what becomes of
another. Two rules let it: a next hop that is reached through a learned route (``far``), and a limit
on what a peer may send. Prefixes that the first concerns are judged one by one, together with all
that may carry their next hops; of those that the second takes something from, what remains is
judged by kinds like everything else (``limits.py``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, overload

from bgp.adj_rib import Offers, plain_of
from bgp.nlri import Nlri, nlri_of, prefix_of
from bgp.paths import Path, PathAttributes
from routing.classes import PrefixClass, PrefixClasses
from routing.import_policy import (
    MAX_PREFIX,
    RejectedPath,
    limit_detail,
    within_limits,
)
from routing.learning import Learned, Learner, Rules
from routing.limits import Accepted, Beyond, Standing, asking, beyond, most_of, standing
from routing.ownership import OwnershipConflict
from routing.route_table import Hops, hops_of
from routing.routes import Address, Prefix

MEMO_MAX = 200_000
"""Kinds of prefixes; beyond, all are forgotten and asked for again as they come."""

LEARNED_AT_ONCE = 256
"""Prefixes that are decided on before others have a turn, where it is found out in parts."""

ASKED_AT_ONCE = 1000
"""Kinds of prefixes that are looked at in one go."""

GUISES_MAX = 10_000
"""Guises of kinds; beyond, all are forgotten, and the rules are asked more often."""

Said = tuple[PathAttributes, ...]
Kind = tuple[tuple[PrefixClass, Said], Sequence[Nlri]]
"""With the prefixes that are of it."""
Guise = tuple[object, ...]
Like = tuple[Hops | None, tuple[int, ...] | None]

_NOTHING: dict[Said, Outcome] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What becomes of a prefix.

    Attributes:
        hops: where its route leads; None: there is none.
        best: of what is said, what is used.
        rejected: what is not: (whose, the reason's token, the sentence).
        conflicts: about its owner.
        said: all that is said of it; empty where nothing is used: a peer may say something else of
            each of 50,000 prefixes, and all that are refused alike share one outcome.
        sample: the prefix that sentences and conflicts name; others of its kind share the rest.
    """

    hops: Hops | None
    best: Said
    rejected: tuple[tuple[Address, str, str], ...]
    conflicts: tuple[OwnershipConflict, ...]
    said: Said
    sample: Nlri

    def in_words(self, nlri: Nlri, said: Said) -> tuple[RejectedPath, ...]:
        """What is rejected of ``nlri``, in the sentences of the sample."""
        prefix = prefix_of(nlri)
        by_peer = {each.peer: each for each in said}
        return tuple(
            RejectedPath(by_peer[peer].path(prefix), reason, detail)
            for peer, reason, detail in self.rejected
        )

    def judged(self, said: Said) -> Said:
        """What of ``said`` was judged by the rules; the rest is beyond a limit."""
        beyond_it = {peer for peer, reason, _ in self.rejected if reason == MAX_PREFIX}
        return tuple(each for each in said if each.peer not in beyond_it) if beyond_it else said

    def beyond_limits(self, nlri: Nlri, said: Said) -> tuple[RejectedPath, ...]:
        """What of ``nlri`` is beyond a limit; the sentence does not name the prefix."""
        return tuple(each for each in self.in_words(nlri, said) if each.reason == MAX_PREFIX)

    def has_sentences_of(self, nlri: Nlri) -> bool:
        """Whether its sentences are about ``nlri``; others of its kind are asked about again."""
        return nlri == self.sample and bool(self.said)

    def refuses_like(self, other: Outcome | None) -> bool:
        """Whether both refuse the same for the same reasons."""
        if other is None or len(self.rejected) != len(other.rejected):
            return False
        pairs = zip(self.rejected, other.rejected, strict=True)
        return self is other or all(mine[:2] == its[:2] for mine, its in pairs)


@dataclass(slots=True)
class Remote:
    """All that was learned. The update lane changes it in place, and nobody else.

    Attributes:
        outcomes: of each prefix of which anything is said.
        refused: those of which something is rejected, with all that is said of them.
    """

    outcomes: dict[Nlri, Outcome] = field(default_factory=dict)
    refused: dict[Nlri, Said] = field(default_factory=dict)
    decisions: Decisions | None = None

    def put(self, news: Mapping[Nlri, Outcome | None], said: Offers) -> None:
        """Takes over what has become of some prefixes; None: nothing is said of it any more.

        Args:
            said: what is said of those of which something is rejected.
        """
        outcomes, refused = self.outcomes, self.refused
        refusing = {each for each in set(news.values()) if each is not None and each.rejected}
        for nlri, outcome in news.items():
            if outcome is None:
                outcomes.pop(nlri, None)
            else:
                outcomes[nlri] = outcome
        if refused or refusing:
            for nlri, outcome in news.items():
                refused.pop(nlri, None)
                if outcome in refusing:
                    refused[nlri] = said[nlri]

    def said_of(self, nlri: Nlri) -> Said:
        """All that is said of a prefix."""
        outcome = self.outcomes.get(nlri)
        return () if outcome is None else outcome.said or self.refused.get(nlri, ())

    def refuses_otherwise_than(self, before: Remote) -> list[Nlri]:
        """The prefixes of which something is rejected, and was not or for another reason."""
        now, then = self.outcomes, before.outcomes.get
        alike: dict[tuple[Outcome, Outcome | None], bool] = {}
        found = []
        for nlri in self.refused:
            # What was not refused has nothing in its ``rejected``.
            pair = now[nlri], then(nlri)
            is_alike = alike.get(pair)
            if is_alike is None:
                is_alike = alike[pair] = pair[0].refuses_like(pair[1])
            if not is_alike:
                found.append(nlri)
        return found

    def has_routes(self) -> bool:
        """Whether anything that was learned is used."""
        return any(outcome.best for outcome in set(self.outcomes.values()))

    def without(self, peers: Collection[Address]) -> dict[Hops, Hops]:
        """Which next hops turn into which when ``peers`` say nothing any more: where that is the
        same for all routes that have them, and there are any left.

        By kinds of prefixes, of which there are few: what a table of 100,000 routes does at the
        loss of a router is known in a millisecond, and done in a message a group.
        """
        outcomes = [each for each in set(self.outcomes.values()) if each.hops is not None]
        asked: list[dict[Nlri, Said]] = []
        left: dict[Outcome, tuple[int, Nlri]] = {}
        for outcome in outcomes:
            said = tuple(each for each in outcome.said if each.peer not in peers)
            if said == outcome.said:
                continue
            # Kinds that were found by the same prefix are asked about one after the other.
            turn = next((n for n, q in enumerate(asked) if q.get(outcome.sample, said) == said), -1)
            if turn < 0:
                turn = len(asked)
                asked.append({})
            asked[turn][outcome.sample] = said
            left[outcome] = turn, outcome.sample
        if not left or self.decisions is None:
            return {}
        answers = [self.decisions.some(each, None) for each in asked]
        moves: dict[int, tuple[Hops, set[Hops | None]]] = {}
        for outcome in outcomes:
            hops = new = outcome.hops
            if outcome in left:
                turn, sample = left[outcome]
                answer = (answers[turn] or {}).get(sample)
                new = None if answer is None else answer.hops
            if hops is not None:
                moves.setdefault(id(hops), (hops, set()))[1].add(new)
        return {
            old: new
            for old, news in moves.values()
            if len(news) == 1 and (new := next(iter(news))) is not None and new != old
        }

    def next_hops(self) -> set[Address]:
        """The next hops of all that is used."""
        kin = {each.kin for outcome in set(self.outcomes.values()) for each in outcome.best}
        return {each.next_hop for each in kin}


@dataclass(frozen=True, slots=True)
class Decided:
    """An answer of ``Decisions``: outcomes by prefix, and what is true of all together."""

    outcomes: dict[Nlri, Outcome] = field(default_factory=dict)
    to_close: Mapping[Address, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Decisions:
    """The answers under one set of rules, each found once."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._learner: Learner | None = None
        self._classes = PrefixClasses(rules.compared_prefixes(), rules.owned())
        self._memo: dict[PrefixClass, dict[Said, Outcome]] = {}
        self._remembered = 0
        self._compared_asns = frozenset(rules.compared_asns())
        self._guises: dict[Guise, Like] = {}
        """Of kinds of which all is used or passed over, nothing refused: where they lead, and which
        of what is said is used; None: all of it, in its order."""
        self._near: dict[tuple[int, int], tuple[bool, Address, Address]] = {}
        """By the identity of peer and next hop, which are kept for it: there are a few of these,
        and of attributes 50,000; hashing addresses takes longer than the answer."""
        self._closed: dict[PrefixClass, bool] = {}
        """Whether the policy is against prefixes of a class, whoever says what of them."""
        self._refused: dict[tuple[PrefixClass, int], tuple[Outcome, Address]] = {}
        """What becomes of those, by who alone says something of them (by identity, too)."""
        self._refusals: dict[Guise, Outcome] = {}
        """The outcomes of what is refused alike, each of which there is one."""
        self._far_hops: frozenset[Address] = frozenset()
        """The next hops on no link of ours, as of the last ``all``."""
        self._far_numbers: dict[int, list[int]] = {32: [], 128: []}
        """The same as numbers in order, by their bits."""
        self._is_entangled = True
        """Whether a learned route carries another's next hop, as of the last ``all``."""
        self._standing: Mapping[Address, Standing] = {}
        """Whom a limit concerns, as of the last ``all``."""
        self._most: Mapping[Address, int] = {}
        """How many paths are used of those whom a limit holds, and how many they sent."""
        self._sent: Mapping[Address, int] = {}
        self._accepted: Accepted = {}

    @property
    def learner(self) -> Learner:
        """The rules themselves; made when they are first asked."""
        if self._learner is None:
            self._learner = Learner(self.rules)
        return self._learner

    def is_near(self, kin: PathAttributes) -> bool:
        """Whether no route but a link's has a say in where the next hop is."""
        peer, next_hop = kin.peer, kin.next_hop
        known = self._near.get((id(peer), id(next_hop)))
        if known is None:
            if len(self._near) >= MEMO_MAX:
                self._near.clear()
            known = self.learner.is_near(peer, next_hop), peer, next_hop
            self._near[id(peer), id(next_hop)] = known
        return known[0]

    def is_closed(self, there: PrefixClass, nlri: Nlri) -> bool:
        """Whether the policy is against ``nlri``, of this class, whatever is said of it."""
        known = self._closed.get(there)
        if known is None:
            if len(self._closed) >= MEMO_MAX:
                self._closed.clear()
            known = self._closed[there] = self.learner.refuses_prefix(prefix_of(nlri))
        return known

    def accepts(self, attributes: PathAttributes, nlri: Nlri) -> bool:
        """Whether the import policy alone has nothing against ``nlri`` with these."""
        return self.learner.accepts(attributes.path(prefix_of(nlri)))

    def getting_ready(self, offers: Offers) -> Iterator[None]:
        """Finds out what takes ``all`` long, a part at a time; others may have a turn in between,
        and what they change is not missed, for nothing of this says what becomes of a prefix."""
        received = _received(offers)
        most = most_of(received, self.rules.sessions)
        if most:
            self._forget_accepted()
            yield from asking(offers, most, self._classes, self, self._accepted)
        elif not self._remembered and len(offers) > LEARNED_AT_ONCE:
            # Other rules: every kind is asked about anew.
            rest = iter(list(offers.items()))
            while some := dict(islice(rest, LEARNED_AT_ONCE)):
                self._of_kinds(some)
                yield

    def _forget_accepted(self) -> None:
        if sum(map(len, self._accepted.values())) > MEMO_MAX:
            self._accepted.clear()

    def all(self, offers: Offers) -> Decided:
        """What becomes of every prefix, ``offers`` being all that is said."""
        received = _received(offers)
        limits = within_limits(received, (), self.rules.sessions)
        most = most_of(received, self.rules.sessions)
        taken: Beyond = {}
        everything = offers
        if most:
            self._forget_accepted()
            taken = beyond(offers, most, self._classes, self, self._accepted)
            offers = _without(dict(offers), taken)
        self._far_hops = self._known_far(offers)
        self._far_numbers = {
            bits: sorted(int(hop) for hop in self._far_hops if hop.max_prefixlen == bits)
            for bits in (32, 128)
        }
        far = self._far(offers)
        self._is_entangled = bool(far)
        self._standing = standing(received, self.rules.sessions)
        self._most, self._sent = most, {peer: received[peer] for peer in most}
        outcomes = self._of_kinds(
            {nlri: said for nlri, said in offers.items() if nlri not in far} if far else offers
        )
        if far:
            outcomes.update(self._of_far(far, offers))
        if taken:
            self._limit(taken, everything, outcomes, received)
        return Decided(outcomes, limits.to_close, limits.problems)

    def some(
        self,
        offers: Offers,
        received: Mapping[Address, int] | None,
        before: Remote | None = None,
    ) -> dict[Nlri, Outcome | None] | None:
        """What becomes of a few, as ``all`` was asked before; None when it takes ``all`` to tell.

        Args:
            received: how many prefixes each peer sends in all; None: it is asked what would be, and
                where a limit holds somebody that is not known.
            before: what has become of all; asked for where a limit holds somebody.
        """
        if self._is_entangled or (self._most and before is None):
            return None
        if received is None:
            if self._most:
                return None
        elif standing(received, self.rules.sessions) != self._standing:
            return None
        far = self._far_hops
        kinds = set(offers.values())
        for each in _kin(kinds):
            # Addresses are hashed in Python: not once a path for an empty set.
            if not (far and each.next_hop in far) and not self.is_near(each):
                return None
        if far and any(self._carries(nlri) for nlri in offers):
            return None
        if self._most and before is not None and received is not None:
            return self._some_beside_limits(offers, received, before)
        if all(kinds):
            return {**self._of_kinds(offers)}
        found: dict[Nlri, Outcome | None] = dict.fromkeys(offers)
        found.update(self._of_kinds({nlri: said for nlri, said in offers.items() if said}))
        return found

    def _some_beside_limits(
        self, offers: Offers, received: Mapping[Address, int], before: Remote
    ) -> dict[Nlri, Outcome | None] | None:
        """The same while a limit holds somebody. Which of his paths are used is a matter of his
        prefixes and of what the policy has against them; while these are the same, so is that."""
        if any(received.get(peer, 0) != sent for peer, sent in self._sent.items()):
            return None
        taken: dict[Nlri, frozenset[Address]] = {}
        for nlri, said in offers.items():
            was = before.outcomes.get(nlri)
            now = {each.peer: each for each in said if each.peer in self._most}
            then = {e.peer: e for e in before.said_of(nlri) if e.peer in self._most}
            if now.keys() != then.keys():
                return None
            for peer, attributes in now.items():
                old = then[peer]
                if attributes is not old and (
                    self.accepts(attributes, nlri) != self.accepts(old, nlri)
                ):
                    return None
            refused = () if was is None else was.rejected
            gone = frozenset(peer for peer, why, _ in refused if why == MAX_PREFIX)
            if gone:
                taken[nlri] = gone
        left = _without(dict(offers), taken)
        found: dict[Nlri, Outcome | None] = dict.fromkeys(offers)
        rest = self._of_kinds({nlri: left[nlri] for nlri, said in offers.items() if said})
        self._limit(taken, offers, rest, received)
        found.update(rest)
        return found

    def sentences(self, nlri: Nlri, outcome: Outcome, said: Said) -> tuple[RejectedPath, ...]:
        """What is rejected of one prefix, in words."""
        prefix = prefix_of(nlri)
        if not outcome.has_sentences_of(nlri):
            # Those of its kind are rejected for the same reasons, and are told so by name.
            paths = [each.path(prefix) for each in outcome.judged(said)]
            again = (*self.learner.learn(paths, {}).rejected, *outcome.beyond_limits(nlri, said))
            if len(again) == len(outcome.rejected):
                return again
        return outcome.in_words(nlri, said)

    def all_sentences(self, remote: Remote) -> Iterator[RejectedPath]:
        """The same of many prefixes: the rules are asked about all of them at once."""
        outcomes = {nlri: remote.outcomes[nlri] for nlri in remote.refused}
        shared = {
            nlri: outcome.judged(remote.refused[nlri])
            for nlri, outcome in outcomes.items()
            if not outcome.has_sentences_of(nlri)
        }
        again: dict[Prefix, list[RejectedPath]] = {}
        for each in self.learner.learn(paths_of(shared), {}).rejected if shared else ():
            again.setdefault(each.path.prefix, []).append(each)
        for nlri, outcome in outcomes.items():
            said = remote.refused[nlri]
            told = again.get(prefix_of(nlri), []) if nlri in shared else []
            told += outcome.beyond_limits(nlri, said) if nlri in shared else ()
            if len(told) == len(outcome.rejected):
                yield from told
            else:
                yield from outcome.in_words(nlri, said)

    # -- inside --------------------------------------------------------------------------------

    def _limit(
        self,
        taken: Beyond,
        offers: Offers,
        outcomes: dict[Nlri, Outcome],
        received: Mapping[Address, int],
    ) -> None:
        """Says in ``outcomes``, which are of what remains, what limits have taken."""
        sessions = self.rules.sessions
        details = {
            peer: limit_detail(peer, received[peer], sessions[peer].max_prefixes)
            for peer in frozenset().union(*set(taken.values()))
        }
        known: dict[tuple[Outcome, object], Outcome] = {}
        for nlri, peers in taken.items():
            rest, said = outcomes[nlri], offers[nlri]
            # Of 50,000 attributes none is named where nothing is used.
            is_alike = not rest.best and not rest.conflicts
            key = rest, peers if is_alike else said
            outcome = known.get(key)
            if outcome is None:
                outcome = known[key] = replace(
                    rest,
                    rejected=(
                        *rest.rejected,
                        *((peer, MAX_PREFIX, details[peer]) for peer in peers),
                    ),
                    said=() if is_alike else said,
                )
            outcomes[nlri] = outcome

    def _known_far(self, offers: Offers) -> frozenset[Address]:
        kin = _kin(set(offers.values()))
        return frozenset(each.next_hop for each in kin if not self.is_near(each))

    def _carries(self, nlri: Nlri) -> bool:
        """Whether a next hop that is not on a link of ours is inside this prefix."""
        bits = (len(nlri) - 1) * 8
        start = int.from_bytes(nlri[1:], "big")
        hops = self._far_numbers[bits]
        at = bisect_left(hops, start)
        last = start | (1 << (bits - nlri[0])) - 1
        return bool(nlri[0]) and at < len(hops) and hops[at] <= last

    def _of_kinds(self, offers: Offers) -> dict[Nlri, Outcome]:
        memo, classes = self._memo, self._classes
        outcomes: dict[Nlri, Outcome] = {}
        unknown: dict[tuple[PrefixClass, Said], list[Nlri]] = {}
        # Neighbours in a table are mostly of one class: it is looked for where the last one ends.
        size, first, last, owned = 0, b"", b"", False
        present: PrefixClass = b""
        known: dict[Said, Outcome] = {}
        is_closed = False
        refused = self._refused
        for nlri, said in offers.items():
            if owned or not first <= nlri <= last or len(nlri) != size:
                there = classes.of(nlri)
                if there != present:
                    present, known = there, memo.get(there, _NOTHING)
                    is_closed = self.is_closed(there, nlri)
                if not owned:
                    size, first, last, owned = classes.alike(nlri)
            if is_closed and len(said) == 1:
                # Whatever its attributes are; nor are they remembered.
                peer = said[0].peer
                like = refused.get((present, id(peer)))
                if like is None:
                    if len(refused) >= MEMO_MAX:
                        refused.clear()
                    like = refused[present, id(peer)] = self._asked_alone(nlri, said), peer
                outcomes[nlri] = like[0]
                continue
            outcome = known.get(said)
            if outcome is None:
                unknown.setdefault((present, said), []).append(nlri)
            else:
                outcomes[nlri] = outcome
        if unknown:
            self._remembered += len(unknown)
            if self._remembered > MEMO_MAX:
                self._remembered = len(unknown)
                memo.clear()
            kinds = iter(unknown.items())
            # Not all at once: a peer that says something else of each of 50,000 prefixes would make
            # as many of everything that judging one takes, and memory in pieces does not come back.
            while some := list(islice(kinds, ASKED_AT_ONCE)):
                for ((there, said), nlris), outcome in zip(some, self._found(some), strict=True):
                    memo.setdefault(there, {})[said] = outcome
                    outcomes.update(dict.fromkeys(nlris, outcome))
        return outcomes

    def _found(self, kinds: Sequence[Kind]) -> list[Outcome]:
        """The outcomes of kinds that are new. Every node's block has a path of its own, so the
        first of each guise is asked about and the others are like it; what refuses something is
        asked about one by one, for the sentences name what is told apart."""
        found: list[Outcome | None] = [None] * len(kinds)
        first: dict[Guise, int] = {}
        waiting: list[tuple[int, Guise]] = []
        for place, ((there, said), nlris) in enumerate(kinds):
            guise = self._guise(there, said)
            like = self._guises.get(guise)
            if like is None:
                first.setdefault(guise, place)
                waiting.append((place, guise))
            else:
                found[place] = _like(like, said, nlris[0])
        self._ask(kinds, first.values(), found)
        if len(self._guises) + len(first) > GUISES_MAX:
            self._guises.clear()
        for guise, place in first.items():
            outcome = found[place]
            if outcome is not None and not outcome.rejected and not outcome.conflicts:
                places = {each: at for at, each in enumerate(outcome.said)}
                used = tuple(places[each] for each in outcome.best)
                is_all = used == tuple(range(len(outcome.said)))
                self._guises[guise] = outcome.hops, None if is_all else used
        strange: list[int] = []
        for place, guise in waiting:
            if found[place] is not None:
                continue
            like = self._guises.get(guise)
            if like is None:
                strange.append(place)
            else:
                (_, said), nlris = kinds[place]
                found[place] = _like(like, said, nlris[0])
        self._ask(kinds, strange, found)
        return [outcome for outcome in found if outcome is not None]

    def _ask(
        self, kinds: Sequence[Kind], places: Collection[int], found: list[Outcome | None]
    ) -> None:
        """Puts what the rules say of some of ``kinds`` into ``found``."""
        if not places:
            return
        samples = {nlris[0]: said for (_, said), nlris in map(kinds.__getitem__, places)}
        answers = outcomes_of(samples, self.learner.learn(paths_of(samples)))
        for place in places:
            found[place] = self._alike(answers[kinds[place][1][0]])

    def _asked_alone(self, nlri: Nlri, said: Said) -> Outcome:
        sample = {nlri: said}
        return self._alike(outcomes_of(sample, self.learner.learn(paths_of(sample)))[nlri])

    def _alike(self, outcome: Outcome) -> Outcome:
        """The one for all that are refused for the same reasons, where nothing is used."""
        if outcome.best or outcome.conflicts or (outcome.said and not outcome.rejected):
            return outcome
        why = tuple((*plain_of(peer), reason) for peer, reason, _ in outcome.rejected)
        known = self._refusals.get(why)
        if known is None:
            if len(self._refusals) >= GUISES_MAX:
                self._refusals.clear()
            known = self._refusals[why] = replace(outcome, said=())
        return known

    def _guise(self, there: PrefixClass, said: Said) -> Guise:
        """What the rules see of a kind: AS numbers that none of them names are counted."""
        compared = self._compared_asns
        numbers: dict[int, int] = {}
        guise: list[object] = [there]
        for each in said:
            guise.append(each.kin)
            guise += [
                asn if asn in compared else ~numbers.setdefault(asn, len(numbers))
                for asn in each.as_path
            ]
        return tuple(guise)

    def _far(self, offers: Offers) -> set[Nlri]:
        """The prefixes whose outcome another prefix may have a say in."""
        carried = {
            each
            for said in set(offers.values())
            for each in said
            if not self.is_near(each.kin)
            and next(_covering(each.next_hop, offers), None) is not None
        }
        if not carried:
            return set()
        return {n for n, said in offers.items() if any(each in carried for each in said)}

    def _of_far(self, far: set[Nlri], offers: Offers) -> dict[Nlri, Outcome]:
        """Judged with all that may carry their next hops, and what carries that."""
        needed = set(far)
        waiting = list(far)
        while waiting:
            hops = {each.next_hop for nlri in waiting for each in offers[nlri]}
            carriers = {nlri for hop in hops for nlri in _covering(hop, offers)}
            waiting = list(carriers - needed)
            needed |= carriers
        together = {nlri: offers[nlri] for nlri in offers if nlri in needed}
        outcomes = outcomes_of(together, self.learner.learn(paths_of(together)))
        return {nlri: outcomes[nlri] for nlri in far}


def _like(like: Like, said: Said, sample: Nlri) -> Outcome:
    """The outcome of a kind in a guise that is known."""
    hops, used = like
    best = said if used is None else tuple([said[at] for at in used])
    return Outcome(hops, best, (), (), said, sample)


def _kin(kinds: Iterable[Said]) -> set[PathAttributes]:
    """Of all that is said."""
    return {each.kin for said in kinds for each in said}


def _received(offers: Offers) -> dict[Address, int]:
    """How many prefixes each peer sends."""
    found: dict[int, list[Any]] = {}
    for said, number in Counter(offers.values()).items():
        for each in said:
            # By identity: hashing an address takes longer than all the rest.
            known = found.setdefault(id(each.peer), [each.peer, 0])
            known[1] += number
    received: dict[Address, int] = {}
    for peer, number in found.values():
        received[peer] = received.get(peer, 0) + number
    return received


def _without(offers: dict[Nlri, Said], taken: Beyond) -> dict[Nlri, Said]:
    """Leaves of the prefixes from which something is taken what remains; ``offers`` again."""
    alike: dict[tuple[Said, frozenset[Address]], Said] = {}
    for nlri, peers in taken.items():
        said = offers[nlri]
        if len(said) == 1:
            offers[nlri] = ()
            continue
        left = alike.get((said, peers))
        if left is None:
            left = alike[said, peers] = tuple(each for each in said if each.peer not in peers)
        offers[nlri] = left
    return offers


def paths_of(offers: Offers) -> Iterator[Path]:
    """All that is said, as paths."""
    for nlri, said in offers.items():
        prefix = prefix_of(nlri)
        for each in said:
            yield each.path(prefix)


def outcomes_of(offers: Offers, learned: Learned) -> dict[Nlri, Outcome]:
    """What ``learned`` makes of each of ``offers``."""
    rejected: dict[Prefix, list[RejectedPath]] = {}
    for each in learned.rejected:
        rejected.setdefault(each.path.prefix, []).append(each)
    conflicts: dict[Prefix, list[OwnershipConflict]] = {}
    for conflict in learned.conflicts:
        conflicts.setdefault(conflict.prefix, []).append(conflict)
    outcomes: dict[Nlri, Outcome] = {}
    for nlri, said in offers.items():
        prefix = prefix_of(nlri)
        by_peer = {each.peer: each for each in said}
        best = tuple(by_peer[path.peer] for path in learned.best.get(prefix, ()))
        outcomes[nlri] = Outcome(
            hops_of(learned.next_hops(prefix)) if best else None,
            best,
            tuple((r.path.peer, r.reason, r.detail) for r in rejected.get(prefix, ())),
            tuple(conflicts.get(prefix, ())),
            said,
            nlri,
        )
    return outcomes


def refused_of(outcomes: Mapping[Nlri, Outcome], offers: Offers) -> dict[Nlri, Said]:
    """Those of which something is rejected, with what is said of them."""
    refusing = {outcome for outcome in set(outcomes.values()) if outcome.rejected}
    return {n: offers[n] for n, o in outcomes.items() if o in refusing} if refusing else {}


def conflicts_of(outcomes: Mapping[Nlri, Outcome]) -> tuple[OwnershipConflict, ...]:
    """Who claims what is another's, each with its own prefix."""
    return tuple(
        replace(conflict, prefix=prefix_of(nlri))
        for nlri, outcome in outcomes.items()
        if outcome.conflicts
        for conflict in outcome.conflicts
    )


def _covering(address: Address, table: Mapping[Nlri, object]) -> Iterator[Nlri]:
    """The entries that contain ``address``, default routes apart (they carry no next hop)."""
    packed = address.packed
    bits = len(packed) * 8
    number = int.from_bytes(packed, "big")
    for length in range(bits, 0, -1):
        host = bits - length
        nlri = bytes((length,)) + (number >> host << host).to_bytes(len(packed), "big")
        if nlri in table:
            yield nlri


class BestPaths(Mapping[Prefix, tuple[Path, ...]]):
    """The best paths of each prefix that has any, as values for whoever looks at one."""

    def __init__(self, outcomes: Mapping[Nlri, Outcome]) -> None:
        self._outcomes = outcomes

    def __getitem__(self, prefix: Prefix) -> tuple[Path, ...]:
        outcome = self._outcomes[nlri_of(prefix)]
        if not outcome.best:
            raise KeyError(prefix)
        return tuple(each.path(prefix) for each in outcome.best)

    def __iter__(self) -> Iterator[Prefix]:
        for nlri, outcome in list(self._outcomes.items()):
            if outcome.best:
                yield prefix_of(nlri)

    def __len__(self) -> int:
        return sum(1 for outcome in self._outcomes.values() if outcome.best)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]


class RejectedPaths(Sequence[RejectedPath]):
    """What is not used, and why. The sentences are made for whoever looks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def counts(self) -> Counter[tuple[Address, str]]:
        """How many, by (peer, reason)."""
        outcomes = self._remote.outcomes
        found: Counter[tuple[Address, str]] = Counter()
        for outcome, number in Counter(outcomes[nlri] for nlri in self._remote.refused).items():
            for peer, reason, _ in outcome.rejected:
                found[peer, reason] += number
        return found

    def examples(self) -> dict[tuple[Address, str], RejectedPath]:
        """One of each (peer, reason)."""
        outcomes = self._remote.outcomes
        samples: dict[Outcome, Nlri] = {}
        for nlri in self._remote.refused:
            samples.setdefault(outcomes[nlri], nlri)
        first: dict[tuple[Address, str], Nlri] = {}
        for outcome, nlri in samples.items():
            for peer, reason, _ in outcome.rejected:
                first.setdefault((peer, reason), nlri)
        return {
            key: each
            for key, nlri in first.items()
            for each in self.of(nlri)
            if (each.path.peer, each.reason) == key
        }

    def news(self, before: RejectedPaths) -> list[Nlri]:
        """The prefixes of which ``before`` did not say the same."""
        return self._remote.refuses_otherwise_than(before._remote)

    def only(self, is_asked: Callable[[Nlri], bool]) -> RejectedPaths:
        """Those of some prefixes."""
        remote = Remote(decisions=self._remote.decisions)
        asked = [nlri for nlri in self._remote.refused if is_asked(nlri)]
        remote.put({nlri: self._remote.outcomes[nlri] for nlri in asked}, self._remote.refused)
        return RejectedPaths(remote)

    def of(self, nlri: Nlri) -> tuple[RejectedPath, ...]:
        """What is not used of one prefix."""
        said, decisions = self._remote.refused.get(nlri), self._remote.decisions
        if said is None or decisions is None:
            return ()
        return decisions.sentences(nlri, self._remote.outcomes[nlri], said)

    @overload
    def __getitem__(self, index: int) -> RejectedPath: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RejectedPath]: ...
    def __getitem__(self, index: int | slice) -> RejectedPath | Sequence[RejectedPath]:
        return self._all()[index]

    def _all(self) -> tuple[RejectedPath, ...]:
        decisions = self._remote.decisions
        return () if decisions is None else tuple(decisions.all_sentences(self._remote))

    def __iter__(self) -> Iterator[RejectedPath]:
        return iter(self._all())

    def __len__(self) -> int:
        return self.counts().total()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def counts_of(rejected: Sequence[RejectedPath]) -> Counter[tuple[Address, str]]:
    """How many of ``rejected`` there are, by (peer, reason)."""
    if isinstance(rejected, RejectedPaths):
        return rejected.counts()
    return Counter((each.path.peer, each.reason) for each in rejected)


def examples_of(rejected: Sequence[RejectedPath]) -> dict[tuple[Address, str], RejectedPath]:
    """One of ``rejected`` for each (peer, reason)."""
    if isinstance(rejected, RejectedPaths):
        return rejected.examples()
    return {(each.path.peer, each.reason): each for each in reversed(rejected)}


def news_of(
    before: Sequence[RejectedPath], after: Sequence[RejectedPath], most: int
) -> tuple[list[RejectedPath], int]:
    """What ``after`` has and ``before`` had not, or for other reasons: as many as ``most``
    prefixes', and how many prefixes more there are."""
    if isinstance(before, RejectedPaths) and isinstance(after, RejectedPaths):
        fresh = after.news(before)
        return [each for nlri in fresh[:most] for each in after.of(nlri)], len(fresh[most:])
    known = {(each.path.peer, each.path.prefix): each.reason for each in before}
    new = [each for each in after if known.get((each.path.peer, each.path.prefix)) != each.reason]
    return new[:most], len(new[most:])
