"""Fuzzing of everything that reads what others wrote. ``python -m tests.fuzz`` is a campaign; the
corpus it leaves is replayed by test_corpus.py. How it works: docs/fuzzing.md."""
