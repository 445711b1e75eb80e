import lightning
import pytest
import torch
from torch import nn

from eegrecon.callbacks.average import MovingAverage


class Linear(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("ids", torch.tensor([1, 3, 9]))
        self.validated = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.layer.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), 2)

    val_dataloader = train_dataloader


def fit(decay, tmp_path, epochs=2):
    torch.manual_seed(0)
    module = Linear()
    weights = []
    step = module.training_step

    def remember(batch, batch_idx):
        weights.append(module.layer.weight.detach().clone())
        return step(batch, batch_idx)

    module.training_step = remember
    callbacks = [MovingAverage(decay)]
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, default_root_dir=tmp_path, num_sanity_val_steps=0, **options
    )
    trainer.fit(module)
    return module, weights


def test_the_average_is_validated_and_left_in_the_module(tmp_path):
    module, before = fit(0.9, tmp_path)
    # Weights after step n are those before step n + 1; the last ones are in the module's place only as an average.
    plain = lightning_free_run()
    average = plain[0]
    for n, value in enumerate(plain[1:], start=1):
        keep = min(0.9, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * value
    torch.testing.assert_close(module.layer.weight.detach(), average)
    torch.testing.assert_close(module.validated[-1], average)
    assert not torch.allclose(module.validated[-1], plain[-1])
    assert len(before) == len(plain)


def lightning_free_run():
    torch.manual_seed(0)
    module = Linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    weights = []
    for _ in range(2):
        for batch in module.train_dataloader():
            optimizer.zero_grad()
            module.layer(batch).square().mean().backward()
            optimizer.step()
            weights.append(module.layer.weight.detach().clone())
    return weights


def test_whole_numbers_are_copied_not_averaged(tmp_path):
    module, _ = fit(0.999, tmp_path)
    assert module.ids.tolist() == [1, 3, 9]


@pytest.mark.parametrize("decay", [0.0, 1.0, -1])
def test_a_decay_outside_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(decay)
