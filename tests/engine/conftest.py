"""What holds for each test of the engine that measures."""

import pytest
import torch

from tests import fakes


@pytest.fixture(autouse=True)
def _threads_of_the_cells() -> None:
    """What measures in this process sets threads, and no order of files may decide a test."""
    torch.set_num_threads(fakes.cell().threads)
