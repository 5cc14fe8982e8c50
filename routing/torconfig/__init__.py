"""The other side of our sessions, in the words of the router that has to speak them."""
