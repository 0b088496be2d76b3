"""The doctor finds nothing here, and names the fix where something is wrong."""

import pytest
from packaging.requirements import Requirement

from vlm_core import doctor
from vlm_core.switches import SWITCHES, switch_off


def test_this_environment_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    switch_off()
    code = doctor.main([])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "0 to fix" in said
    assert said.count("✓") == said.count("\n") - 1


def test_a_package_outside_its_bounds_or_absent_is_named_with_both_versions() -> None:
    assert doctor.mismatch(Requirement("numpy<1.0")).endswith("expected <1.0")
    assert doctor.mismatch(Requirement("no-such-package-anywhere")) == "no-such-package-anywhere is not installed"
    assert doctor.mismatch(Requirement("hydra-core>=1.4.0rc3")) == ""  # a pre-release on purpose


def test_a_release_that_steals_credentials_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "2.6.3" if name == "lightning" else real(name))
    found = {finding.what: finding for finding in doctor.packages()}
    assert "steals credentials" in found["lightning"].found
    assert "change every secret" in found["lightning"].fix


def test_a_switch_that_the_user_set_otherwise_is_reported_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off()
    for name, value in SWITCHES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "online")
    switch_off()
    (finding,) = doctor.switches()
    assert "WANDB_MODE=online" in finding.found
    assert finding.fix == "Unset WANDB_MODE"
