"""The network as a picture: who speaks BGP with whom, what they tell each other, what is wrong."""
