"""AWS's own `sagemaker` SDK beside this repository's folder of the same name.

The SDK lies in a directory of its own (`make install-dev` puts it there), and each test runs it in
a process whose path starts at the repository's root, as a notebook would.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.settings_sources import resolve

ROOT = Path(__file__).parents[2]
SDK = Path(sys.prefix) / "aws-sdk"
PREPARE = """
import json
from unittest.mock import MagicMock
import sagemaker
from sagemaker.huggingface import HuggingFaceModel

session = MagicMock()
session.boto_region_name = "eu-west-1"
session.config = None
session.sagemaker_config = {}
model = HuggingFaceModel(
    image_uri="111122223333.dkr.ecr.eu-west-1.amazonaws.com/llm:1.0",
    role="arn:aws:iam::111122223333:role/serving",
    env={
        "HF_MODEL_ID": "org/model",
        "SM_NUM_GPUS": "1",
        "MAX_INPUT_LENGTH": "2048",
        "MAX_TOTAL_TOKENS": "4096",
        "MAX_BATCH_TOTAL_TOKENS": "8192",
        "HF_TOKEN": "hf_x",
        "MESSAGES_API_ENABLED": "true",
    },
    sagemaker_session=session,
)
definition = model.prepare_container_def("ml.g5.xlarge")
print(json.dumps({"file": sagemaker.__file__, "definition": definition}))
"""


def prepared() -> dict[str, dict[str, dict[str, str]]]:
    assert SDK.is_dir(), f"the AWS SDK is not in {SDK}: run `make install-dev`"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SDK)]),  # ours comes first
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARE],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, dict[str, dict[str, str]]] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def answer() -> dict[str, dict[str, dict[str, str]]]:
    return prepared()


def test_import_sagemaker_at_the_root_is_the_sdk(
    answer: dict[str, dict[str, dict[str, str]]],
) -> None:
    assert Path(str(answer["file"])).is_relative_to(SDK)


def test_the_server_accepts_what_hugging_face_model_sends(
    answer: dict[str, dict[str, dict[str, str]]],
) -> None:
    environment = answer["definition"]["Environment"]
    assert {"SAGEMAKER_PROGRAM", "SAGEMAKER_REGION"} <= set(environment)  # added by the SDK
    settings = resolve(["serve"], environment)
    assert settings.model_id == "org/model"
    assert settings.num_shard == 1
    assert settings.port == 8080
    assert settings.max_input_length == 2048 or settings.max_input_tokens == 2048
    assert settings.max_total_tokens == 4096
    assert settings.hf_token == "hf_x"


def test_the_image_is_ours(answer: dict[str, dict[str, dict[str, str]]]) -> None:
    image = str(answer["definition"]["Image"])
    assert image == "111122223333.dkr.ecr.eu-west-1.amazonaws.com/llm:1.0"
