"""The contract's assertions tell what they saw, as those in test files do."""

import pytest

pytest.register_assert_rewrite("lmstash.testing")
