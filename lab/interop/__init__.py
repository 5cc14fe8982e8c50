"""Our agent and speaker beside real BGP daemons, one question at a time; the answer is a table."""
