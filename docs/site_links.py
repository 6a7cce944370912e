"""Hook of the documentation site: links to files outside of docs/, which the site lacks, become paths."""

import re

LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown, **_):
    """Replaces [text](../path) by text and `path`; paths in the text are left as they are."""
    return LINK.sub(_replaced, markdown)


def _replaced(match):
    text, path = match[1], match[2]
    return text if path in text.replace("`", "") else f"{text} (`{path}`)"
