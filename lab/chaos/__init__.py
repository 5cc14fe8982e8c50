"""The fault matrix: break it on purpose, in a real lab, and say in numbers what came of it."""
