"""What the tests with real runtimes share: a lab without pods, and looking at what is in it."""

import json
from contextlib import contextmanager
from ipaddress import ip_address

from lab import build, namespaces, runtime, teardown
from lab.plan import Shape
from lab.waiting import Progress, wait_until

EMPTY_DEADLINE_S = 15

FIRST_TTL = 64
ROUTERS_ON_THE_WAY = 3
"""Between pods of two nodes: the one node, the top-of-rack router, the other node."""


@contextmanager
def lab_of(name, *, nodes):
    """A lab that has converged, without pods; at its end no node may hold anything of one."""
    lab = build.claim(name, Shape(nodes=nodes, pods=0), progress=Progress())
    problems = []
    try:
        build.up(lab)
        yield lab
        problems = [text for node in lab.plan.nodes for text in teardown.pod_leftovers(node)]
    finally:
        problems += teardown.down(lab)
    assert problems == []


def machine(lab, node):
    """A node by its name."""
    return next(m for m in lab.plan.nodes if m.name == node)


def said(lab, node, view):
    """The rows of ``slash32 <view>`` on a node."""
    command = build.slash32_command(view, "--run-dir", str(lab.paths.run_dir(node)), "-o", "json")
    return json.loads(namespaces.run(command, env=build.environment(lab.paths), ok=(0, 1)))


def held(lab, node):
    """A sentence for each pod the agent of a node knows, and each address it has not got back."""
    pods = [f"agent of {node} has {row}" for row in said(lab, node, "pods")]
    return pods + [
        f"{row['used']} addresses of {row['block']} are in use"
        for row in said(lab, node, "blocks")
        if row["node"] == node and row["used"]
    ]


def links_of_ours(lab, node):
    """A sentence for each pod link on a node."""
    return [text for text in teardown.pod_leftovers(machine(lab, node)) if ": link " in text]


def wait_empty(lab, node, *, also=list):
    """Returns when a node holds nothing of any pod: no link, no route, no address.

    ``also`` says what else must be gone, a sentence each.
    """
    wait_until(
        lambda: teardown.pod_leftovers(machine(lab, node)) + held(lab, node) + also(),
        what=f"{node} without pods",
        deadline_s=EMPTY_DEADLINE_S,
    )


def wait_links_gone(lab, node):
    """Returns when the kernel has removed every pod link, as it does with a pod's namespace."""
    wait_until(
        lambda: links_of_ours(lab, node),
        what=f"{node} without pod links",
        deadline_s=EMPTY_DEADLINE_S,
    )


def addresses(result):
    """The addresses of an ADD result, IPv4 first."""
    return [ip_address(text) for text in runtime.addresses_in(result)]


def peer_url(address, port=80):
    """Where busybox's httpd tells a client the address it came from."""
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}:{port}/cgi-bin/peer"


def peer_said(text):
    """The address in such an answer; IPv4 as IPv4, although the server listens on IPv6."""
    seen = ip_address(text.strip().strip("[]"))
    return getattr(seen, "ipv4_mapped", None) or seen


def fetch_peer(url):
    """The command that asks. Without a timeout: with one, Debian's static busybox crashes."""
    return ["wget", "-q", "-O", "-", url]
