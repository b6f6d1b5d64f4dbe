"""Failed assertions of the helpers are shown as those of tests are."""

import pytest

pytest.register_assert_rewrite("fault_server", "fault_streams")
