"""One look for all that people look at: colours by name, one style sheet of the pages, one style of the figures."""
