import pytest
import torch

torch.set_num_threads(1)  # two workers share the cores


@pytest.fixture(autouse=True)
def _float32():
    yield
    torch.set_default_dtype(torch.float32)
