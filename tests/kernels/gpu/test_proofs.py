"""What has been proved is asked for once, and named where it does not hold."""

import pytest

from serving.kernels.gpu.proofs import Proofs


def test_each_form_is_proved_once(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []

    def fault_of(form: int) -> str | None:
        asked.append(form)
        return "it is off by nan" if form == 2 else None

    proofs = Proofs()
    for _ in range(2):
        assert proofs.hold("state spaces", 1, lambda: fault_of(1))
        assert not proofs.hold("state spaces", 2, lambda: fault_of(2))
        assert proofs.hold("writing", 2, lambda: None)
    assert asked == [1, 2]
    assert caplog.messages == ["state spaces: torch; not triton (it is off by nan)"]
