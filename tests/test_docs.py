"""What the pages for users say: links lead somewhere, files that they name are there, examples run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACE = re.compile(r"`((?:amkd_fast|benchmarks|csrc|docs|examples|tests)/[\w./-]+)`")


def anchors(text: str) -> set[str]:
    """Those that GitHub makes of the headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", CODE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower()).strip().replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


def broken(page: Path, text: str) -> Iterator[str]:
    """Relative links of ``page`` that lead nowhere, and files it names that are not there."""
    prose = CODE.sub("", text)
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", prose)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            yield f"{link}: no such heading"
    yield from (f"{name}: no such file" for name in PLACE.findall(prose) if not (ROOT / name).exists())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    assert list(broken(page, page.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "[a](gone.md)",
        "[a](docs/methods.md#no-such-heading)",
        "[a](#twice-2)\n\n# Twice\n\n# Twice",
        "![a](docs/gone.png)",
        "`amkd_fast/gone.py`",
    ],
)
def test_what_leads_nowhere_is_found(text):
    assert len(list(broken(ROOT / "README.md", text))) == 1


def test_what_leads_somewhere_is_not():
    text = "[a](docs/methods.md#triplets), [b](https://a.b/c), [`c`](#a-b-c-1), `amkd_fast/ops`\n\n"
    text += "# A `b`: c!\n\n# A-b C\n\n```sh\n# [d](gone.md)\n```\n"
    assert list(broken(ROOT / "README.md", text)) == []


@pytest.mark.parametrize("name", [name for name in NAMES if "```python" in (ROOT / name).read_text()])
def test_examples_run(name):
    """All of a page in one namespace, in their order."""
    namespace: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for language, code in CODE.findall((ROOT / name).read_text()):
            if language == "python":
                exec(compile(code, name, "exec"), namespace)
