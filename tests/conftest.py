import os

import pytest
import torch

torch.set_num_threads(1)  # two workers share the cores
# In fp32 on any machine; tests of bf16 say so.
torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: False


@pytest.fixture(autouse=True)
def _float32():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """What evaluating keeps stays out of the user's folders."""
    os.environ["UNPAIRED_CACHE"] = str(tmp_path_factory.mktemp("cache"))
