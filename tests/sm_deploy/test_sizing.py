"""Memory sums worked out by hand, limits and disks."""

import pytest

from sm_deploy import sizing
from sm_deploy.errors import DeployError
from sm_deploy.instances import table
from sm_deploy.model_facts import ModelFacts

# Llama 3 8B: 16.06 GB of weights; 2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB per token.
LLAMA_8B = ModelFacts(16_060_522_496, 131_072, 32, 8192)
LLAMA_70B = ModelFacts(141_107_412_992, 327_680, 64, 8192)


def found(facts: ModelFacts, instance: str, **environment: str) -> sizing.Estimate:
    return sizing.estimate(facts, table()[instance], environment)


def test_the_sum_of_an_8b_model_on_one_a10g() -> None:
    estimate = found(LLAMA_8B, "ml.g5.xlarge")
    assert estimate.weights == pytest.approx(14.957, abs=0.001)  # 16060522496 / 2**30
    assert estimate.kv_cache == 0.5  # 4096 x 128 KiB
    assert estimate.needed == pytest.approx(18.449, abs=0.001)
    assert estimate.usable == pytest.approx(18.616, abs=0.001)  # 22888/1024 x 0.9 - 1.5
    assert estimate.fits


def test_a_longer_context_needs_more() -> None:
    assert not found(LLAMA_8B, "ml.g5.xlarge", MAX_TOTAL_TOKENS="8192").fits


@pytest.mark.parametrize(
    ("instance", "fits"),
    [
        ("ml.g5.48xlarge", False),  # 8 x 24 GB
        ("ml.g6e.12xlarge", False),  # 4 x 48 GB: 157.7 + 1.25 of 154.9 GiB
        ("ml.g6e.48xlarge", True),
        ("ml.p4d.24xlarge", True),
        ("ml.g7e.12xlarge", True),  # 2 x 96 GB
    ],
)
def test_where_a_70b_model_fits(instance: str, fits: bool) -> None:
    assert found(LLAMA_70B, instance).fits is fits


def test_quantization_while_loading_makes_weights_smaller() -> None:
    plain = sizing.estimate(LLAMA_70B, table()["ml.g5.48xlarge"], {})
    small = sizing.estimate(LLAMA_70B, table()["ml.g5.48xlarge"], {}, quantize="bitsandbytes")
    assert small.weights == plain.weights / 2
    assert small.fits


def test_a_component_has_the_memory_of_its_devices() -> None:
    one = sizing.estimate(LLAMA_8B, table()["ml.g6e.12xlarge"], {}, devices=1)
    assert one.usable == pytest.approx(45776 / 1024 * 0.9 - 1.5)


def test_a_cpu_type_has_the_memory_of_its_host() -> None:
    assert found(LLAMA_8B, "ml.m7i.4xlarge").usable == pytest.approx(64 * 0.9 - 1.5)


def test_a_model_that_is_too_big_is_refused_with_the_sum_and_types_that_fit() -> None:
    instance = table()["ml.g5.12xlarge"]
    estimate = sizing.estimate(LLAMA_70B, instance, {})
    with pytest.raises(DeployError) as refusal:
        sizing.check_fit(estimate, instance, "org/70b")
    assert "'org/70b' needs 158.9 GiB, and 74.5 GiB are usable" in str(refusal.value)
    assert "ml.g7e.12xlarge" in refusal.value.remedy
    assert "--force" in refusal.value.remedy
    assert refusal.value.details == [
        "weights   131.4 GiB x 1.2 = 157.7 GiB",
        "KV cache  one sequence of 4096 tokens = 1.2 GiB",
        "needed    158.9 GiB",
        "usable    74.5 GiB of ml.g5.12xlarge (4 x A10G of 22.4 GiB)",
    ]


@pytest.mark.parametrize(
    ("heads", "devices", "ranks"), [(32, 8, 8), (14, 8, 7), (15, 4, 3), (7, 4, 1), (0, 4, 4)]
)
def test_ranks_divide_the_heads(heads: int, devices: int, ranks: int) -> None:
    assert sizing.shard_count(ModelFacts(1, 0, heads), devices) == ranks


def test_limits_follow_the_size() -> None:
    assert sizing.download_seconds(LLAMA_8B) == 600 + 161  # at 100 MB/s
    assert sizing.startup_seconds(LLAMA_8B, downloads=False) == 600 + 80  # at 200 MB/s
    assert sizing.startup_seconds(LLAMA_8B, downloads=True) == 600 + 241
    assert sizing.startup_seconds(None, downloads=True) == 1800
    assert sizing.download_seconds(ModelFacts(10**12)) == 3600


def test_a_disk_is_chosen_where_there_is_no_nvme() -> None:
    assert sizing.volume_gb(LLAMA_8B, table()["ml.g5.xlarge"]) is None
    assert sizing.volume_gb(LLAMA_8B, table()["ml.m5.4xlarge"]) == 62  # 30 + 2 x 16
    assert sizing.volume_gb(None, table()["ml.m5.4xlarge"]) is None
    with pytest.raises(
        DeployError, match=r"needs 830 GB of disk, ml\.r7i\.48xlarge can have 512 GB"
    ):
        sizing.volume_gb(ModelFacts(400 * 10**9), table()["ml.r7i.48xlarge"])
