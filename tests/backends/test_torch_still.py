"""A model that is used amid its training draws nothing, keeps no graph, and is afterwards what it was."""

from __future__ import annotations

import pytest


def test_dropout_rests_and_then_drops_again() -> None:
    torch = pytest.importorskip("torch")
    from backpropagate_backends.torch_still import still

    resting = torch.nn.Linear(4, 4).eval()
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 4), resting)
    ones, before = torch.ones(2, 4), torch.get_rng_state()
    with still(model):
        assert torch.equal(model(ones), model(ones))
        assert not model(ones).requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model] == [True, True, False]
    assert not torch.equal(model(ones), model(ones))


@pytest.mark.slow
def test_four_bit_layers_can_be_trained_on_after_they_were_used() -> None:
    torch, bitsandbytes = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes")
    from backpropagate_backends.torch_still import still

    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    given = torch.randn(3, 64, requires_grad=True)
    layer.eval()  # as it is loaded
    with still(layer):
        used = layer(given.detach())
    trained = layer.train()(given)
    trained.sum().backward()
    assert given.grad is not None
    assert torch.equal(used, trained)
