"""``slash32 explain``: the chain behind one address, and the first link of it that is wrong."""
