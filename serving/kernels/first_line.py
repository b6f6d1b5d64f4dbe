"""What a library says of an error, for a line of the log."""

LONGEST = 160  # characters


def first_line(error: Exception) -> str:
    """The first line of its text; the name of its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:LONGEST] if text else type(error).__name__
