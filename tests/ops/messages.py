"""What the message of an error has to say."""

import re

import pytest


def fails(error, name, *words):
    """An error whose message starts with the argument's name and has all the words."""
    others = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(error, match=rf"(?s)^(?={re.escape(name)}(?!\w)){others}")
