"""The exception for mistakes in a user's configuration, and the search for the name the user meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One sentence that names the key, its value and what is allowed; scripts print it and exit 2."""


def closest(name: str, options: Iterable[str]) -> str:
    """A hint such as `; did you mean 'gamma'?` with up to three options near to `name`, or nothing."""
    name, options = str(name), [str(option) for option in options]
    found = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if len(name) >= 3:  # people remember a part of a name: 'spread' for 'simple_spread'
        found += [o for o in options if o not in found and name.lower() in o.lower()]
    return f"; did you mean {' or '.join(repr(option) for option in found[:3])}?" if found else ""
