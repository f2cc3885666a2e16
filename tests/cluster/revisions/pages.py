"""What the pages in docs show, for tests to do just that."""

import re
from pathlib import Path

_DOCS = Path(__file__).parents[3] / "docs"

COMMANDS = re.findall(
    r"^\$ (kubectl .+?)(?: +#.*)?$", (_DOCS / "revisions.md").read_text(), re.MULTILINE
)
REVISION, PIN = "web-547df99d74", "web-547df99d74-87265ae3"
"""The names that these have."""

_, _, _section = (_DOCS / "configuration.md").read_text().partition("## More kinds of workloads")
OPTED_IN, RIGHTS = re.findall(r"```yaml\n(.+?)```", _section.partition("\n## ")[0], re.DOTALL)
"""How a kind is opted in, and what tagpin must be allowed."""
