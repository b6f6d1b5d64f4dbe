"""Command line tools that are no server."""
