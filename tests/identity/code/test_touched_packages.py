"""Every installed package that your own code names counts by its version."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import pytest

from lmstash.identity.code.own_code import OwnCode

NAMES = {
    "numpy": [
        "import numpy as np\ndef ask(): return np.mean([1])",
        "from numpy import mean\ndef ask(): return mean([1])",
        "from numpy import add\ndef ask(f=add): return f(1, 2)",
        "import numpy as np\ndef ask(x: np.ndarray): return x",
        "def ask():\n import numpy\n return numpy.mean([1])",
        "def ask():\n from numpy.linalg import norm\n return norm([1])",
        "import numpy.linalg as la\ndef norm(x): return la.norm(x)\ndef ask(): return norm([1])",
        "import numpy as np\nclass A:\n mean = np.mean\ndef ask(): return A.mean([1])",
    ],
    "torch": [
        "import torch\ndef ask(): return torch.ones(1)",
        "from torch import ones\ndef ask(): return ones(1)",
        "import torch.nn.functional as F\ndef ask(x): return F.softmax(x, 0)",
        "import torch\nclass M(torch.nn.Module): pass\ndef ask(): return M()",
    ],
    "transformers": ["import transformers\ndef ask(t): return transformers.pipeline(t)"],
    "pydantic": [
        "import pydantic\ndef ask(): return pydantic.BaseModel",
        "import pydantic\nclass A(pydantic.BaseModel): pass\ndef ask(): return A()",
    ],
    "httpx": ["import httpx\ndef ask(u): return httpx.post(u)", "def ask(u):\n import httpx\n return httpx.post(u)"],
    "": [
        "import lmstash, json\ndef ask(): return lmstash.open(json.loads('1'))",
        "def ask():\n import lmstash, json\n return 1",
        "def ask():\n import lmstash_test_absent\n return 1",
    ],
}


def packages_of(source: str) -> dict[Any, Any]:
    program: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "<program>", "exec", dont_inherit=True), program)
    return OwnCode("program", program["ask"]).packages()


@pytest.mark.parametrize(("package", "source"), [(name, each) for name, sources in NAMES.items() for each in sources])
def test_a_package_that_code_names_is_among_its_packages(package: str, source: str) -> None:
    if package:
        pytest.importorskip(package)
    found = packages_of(source)
    assert [*found] == ([package] if package else [])
    assert all(found.values())


def test_what_is_imported_when_code_runs_counts_alike_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = pytest.importorskip("httpx")
    source = "def ask(u):\n import httpx\n return httpx.post(u)"
    monkeypatch.setattr(loaded, "__version__", "as it says itself")
    assert packages_of(source) == {"httpx": version("httpx")}
    monkeypatch.delitem(sys.modules, "httpx")
    assert packages_of(source) == {"httpx": version("httpx")}
