"""One look for everything that people look at: colours by name, the style sheet of all pages, the style of all figures."""
