"""Measures everything of the GPU path with one command: `python -m benchmarks.gpu`.

Reading order: `__main__`, `sections`, `report`, `roofline`, `timing`; then a file for each part.
"""
