"""The supervisor: starts, watches, drains and ends the processes of one server."""
