"""Extension of the documentation site: sections of docstrings follow each other without a blank line here."""

import re

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=[ \t]*(?:Args|Call|Returns|Yields|Raises|Attributes):\n|[ \t]*Returns: )")


class Sections(griffe.Extension):
    """Adds the blank lines that Google's style has in front of sections."""

    def on_object(self, *, obj, **_):
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = SECTION.sub("\n\n", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)^([ \t]*)Returns: (.+)$", r"\1Returns:\n\1    \2", text)
