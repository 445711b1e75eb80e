import pytest
import torch

from eegrecon.errors import ConfigError
from eegrecon.modules import picture_memory
from eegrecon.modules.picture_memory import activation_bytes, enough_memory, fitting_batch
from tests.builders_sdxl import tiny_sdxl

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    from eegrecon.models.generators.sdxl import SDXLGenerator

    return SDXLGenerator(base=str(tiny_sdxl(tmp_path_factory.mktemp("sdxl"))), size=16, guidance_scale=1.0)


def test_the_batch_follows_the_free_memory(generator, monkeypatch):
    free = [0]
    monkeypatch.setattr(picture_memory, "free_bytes", lambda device: free[0])
    monkeypatch.setattr(picture_memory, "MOST", 20)

    def fits(bytes_, **more):
        free[0] = int(bytes_ / picture_memory.SHARE) + 4
        return fitting_batch(generator, more.pop("device", CPU), **more)

    one = 8 * 16 * 16 * 16 * 4  # of this generator the autoencoder takes more
    assert [activation_bytes(generator, size) for size in (1, 7)] == [one, 7 * one]
    assert [fits(one * pictures) for pictures in (0, 0.5, 1, 7.5, 10_000)] == [1, 1, 1, 7, 20]
    assert fits(8 * one, processes=2) == 4
    # on a device where the parameters are not yet they take their part
    meta = torch.device("meta")
    parameters = sum(parameter.numel() * 4 for parameter in generator.parameters())
    assert fits(8 * one, device=meta) == max(1, 8 - -(-parameters // one))
    assert fits(8 * one + parameters, device=meta) == 8
    assert fitting_batch(object(), CPU) == 1


def test_the_network_that_takes_more_counts(generator, monkeypatch):
    from eegrecon.models.generators import sdxl

    monkeypatch.setattr(sdxl, "DECODED_PIXELS", 16 * 16)  # decode one by one: the UNet takes more in a large batch
    unet = 32 * 4 * (8 * 4 * 4 + 16 * 2 * 2)
    assert activation_bytes(generator, 1) == 8 * 16 * 16 * 16 * 4
    assert activation_bytes(generator, 50) == 50 * unet
    monkeypatch.setattr(generator, "guidance_scale", 2.0)
    assert activation_bytes(generator, 50) == 2 * 50 * unet


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
