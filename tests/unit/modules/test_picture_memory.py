import pytest
import torch

from eegrecon.errors import ConfigError
from eegrecon.modules import picture_memory
from eegrecon.modules.picture_memory import bytes_per_picture, enough_memory, fitting_batch
from tests.builders_sdxl import tiny_sdxl

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    from eegrecon.models.generators.sdxl import SDXLGenerator

    return SDXLGenerator(base=str(tiny_sdxl(tmp_path_factory.mktemp("sdxl"))), size=16, guidance_scale=1.0)


def test_the_batch_follows_the_free_memory(generator, monkeypatch):
    free = [0]
    monkeypatch.setattr(picture_memory, "free_bytes", lambda device: free[0])
    one = bytes_per_picture(generator)
    assert one == 12 * 4 * (8 * 4 * 4 + 16 * 2 * 2)
    for pictures, expected in ((0, 1), (0.5, 1), (1, 1), (7.5, 7), (10_000, picture_memory.MOST)):
        free[0] = int(pictures * one / picture_memory.SHARE) + 1
        assert fitting_batch(generator, CPU) == expected
    free[0] = int(8 * one / picture_memory.SHARE) + 4
    assert fitting_batch(generator, CPU, processes=2) == 4
    generator.guidance_scale = 2.0  # two network calls a picture, together
    assert fitting_batch(generator, CPU) == 4
    generator.guidance_scale = 1.0
    # on a device where the parameters are not yet they take their part
    parameters = sum(parameter.numel() * 4 for parameter in generator.parameters())
    assert fitting_batch(generator, torch.device("meta")) == 1
    free[0] = int((parameters + 8 * one) / picture_memory.SHARE) + 4
    assert fitting_batch(generator, torch.device("meta")) == 8
    assert fitting_batch(object(), CPU) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_is_one_sentence(error):
    with (
        pytest.raises(ConfigError, match=r"^There is not enough memory for 8 pictures: try batch_size=4\.$"),
        enough_memory("batch_size=4", "8 pictures"),
    ):
        raise error


def test_a_real_allocation_that_fails_and_other_errors():
    with pytest.raises(ConfigError, match="not enough memory"), enough_memory("less", "it"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), enough_memory("less", "it"):
        raise RuntimeError("shape mismatch")
