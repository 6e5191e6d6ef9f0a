"""The wire: pydantic models of request bodies and answers. Bodies are closed and strict."""
