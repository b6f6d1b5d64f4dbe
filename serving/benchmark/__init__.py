"""Closed-loop load generator for any running text generation server.

Runs in its own process, started by the console script `text-generation-benchmark` (`cli.py`). It
speaks HTTP only: nothing here imports the front, the engine or torch. Reading order: `cli`, `load`,
`prompts`, `routes`, `client`, `sse`, `measures`, `report`.
"""
