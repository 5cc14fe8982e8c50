"""What a freed table leaves behind in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from routing.allocation import settle_allocation

SCRIPT = """
import ctypes, sys
from routing.allocation import settle_allocation
assert settle_allocation()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usm", "fsm", "u", "f", "keep")]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
# glibc's own threshold follows the size of what is freed, and would keep the second in its heap.
for _ in range(2):
    block = bytearray(4 << 20)
    assert mallinfo2().hblkhd >= 4 << 20, "not mapped"
    del block
"""


def test_big_blocks_are_mapped_again_and_again():
    """The second as well, which is what glibc does not do by itself."""
    if not settle_allocation():
        pytest.skip("this C library has no mallopt")
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)
