import torch

from eegrecon.metrics.retrieval import Retrieval, unique_trials


def batch(index, seed=0):
    torch.manual_seed(seed)
    image = torch.randn(1000, 8)[index]
    ones = torch.ones_like(index)
    return {
        "eeg_embeds": image + 0.5 * torch.randn_like(image),
        "image_embeds": image,
        "image_index": index,
        "concept_index": index // 10,
        "subject": ones,
        "repetition": -ones,
    }


def test_batches_and_duplicates_do_not_matter():
    whole = batch(torch.arange(0, 200, 10))
    one, two = Retrieval(), Retrieval()
    one.update(**whole)
    for rows in (slice(7, 20), slice(0, 7), slice(15, 20)):
        two.update(**{name: value[rows] for name, value in whole.items()})
    assert one.compute() == two.compute()
    assert one.compute().n_way == 20
    assert one.compute().n_queries == 20
    two.reset()
    two.update(**whole)
    assert two.compute() == one.compute()


def test_repetitions_and_subjects_are_different_trials():
    whole = batch(torch.tensor([5, 5, 5, 15]))
    whole["subject"] = torch.tensor([1, 2, 1, 1])
    assert len(unique_trials(whole)["image_index"]) == 3
    whole["repetition"] = torch.tensor([0, 0, 1, 0])
    assert len(unique_trials(whole)["image_index"]) == 4
