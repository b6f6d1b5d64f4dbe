"""Ranks on several machines: the leader's view of the others, and the agent that runs there."""
