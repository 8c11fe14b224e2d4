"""What the tests of the documentation share: the modules of the site."""

import sys

import pytest

from tests.docs.built import DOCS


@pytest.fixture(scope="module")
def extensions():
    """The modules of the site that need nothing of Sphinx."""
    names, before = ("texts", "gallery", "trust"), list(sys.path)
    sys.path.insert(0, str(DOCS / "_ext"))
    yield {name: __import__(name) for name in names}
    sys.path[:] = before
    for name in names:
        del sys.modules[name]
