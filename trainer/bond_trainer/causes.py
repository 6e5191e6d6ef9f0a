"""What is at the bottom of an error."""


def first_cause(error: Exception) -> Exception:
    """What made a group of concurrent calls fail: the group's own text only counts them."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
