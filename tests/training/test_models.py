"""Networks: shapes, sizes by hand, export."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from study.tasks.facade import TASK as FACADE
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import TASK as FASHION
from study.tasks.fashion import FashionConfig
from study.training.models import ConvBlock, Normalized, ResidualNet, TwoConv, UNet


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def block_size(inputs: int, outputs: int, shortcut: bool) -> int:
    """Two convolutions without bias, two normalisations, perhaps a 1x1 convolution."""
    return 9 * outputs * (inputs + outputs) + 4 * outputs + shortcut * inputs * outputs


def test_options_of_two_conv() -> None:
    plain = TwoConv((4, 6), 8, 3, 10)
    assert count(plain) == (9 * 4 + 4) + (9 * 4 * 6 + 6) + (49 * 6 * 8 + 8) + (8 * 10 + 10)
    rich = TwoConv((4, 6), 8, 3, 10, batch_norm=True, dropout=0.5)
    assert count(rich) == count(plain) + 2 * (4 + 6)
    assert rich(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    assert sum(isinstance(layer, nn.Dropout) for layer in rich.modules()) == 1  # one, used twice
    torch.manual_seed(0)
    assert not torch.equal(rich(torch.ones(2, 1, 28, 28)), rich(torch.ones(2, 1, 28, 28)))


@pytest.mark.parametrize(("width", "blocks"), [(8, 1), (16, 2)])
def test_residual_net(width: int, blocks: int) -> None:
    network = ResidualNet(width, blocks, 0.1, 10)
    expected, inputs = 9 * width + 2 * width, width
    for stage, block in itertools.product(range(3), range(blocks)):
        outputs = width * 2**stage
        expected += block_size(inputs, outputs, shortcut=stage > 0 and block == 0)
        inputs = outputs
    assert count(network) == expected + 10 * (4 * width * 7 * 7 + 1)
    assert network.features(torch.randn(2, 1, 28, 28)).shape == (2, 4 * width, 7, 7)
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    pooled = ResidualNet(width, blocks, 0.1, 10, stem_pool=True)
    assert count(pooled) == expected + 10 * (4 * width * 4 * 4 + 1)
    assert pooled.features(torch.randn(2, 1, 28, 28)).shape == (2, 4 * width, 4, 4)
    assert pooled(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("residual", "norm"), [(False, "batch"), (True, "group")])
def test_unet(residual: bool, norm: str) -> None:
    widths = (8, 16, 24)
    network = UNet(widths, residual, norm, 0.1, 5)
    pairs = [(3, 8), (8, 16), (16, 24), (16 + 24, 16), (8 + 16, 8)]
    assert count(network) == sum(block_size(*pair, residual) for pair in pairs) + 5 * (8 + 1)
    assert network(torch.randn(2, 3, 32, 48)).shape == (2, 5, 32, 48)
    norms = {type(layer) for layer in network.modules() if "Norm" in type(layer).__name__}
    assert norms == {nn.GroupNorm if norm == "group" else nn.BatchNorm2d}


def test_what_was_at_full_size_comes_through_to_the_output() -> None:
    network = UNet((8, 8), False, "batch", 0.0, 5).eval()
    images = torch.zeros(1, 3, 16, 16)
    changed = images.clone()
    changed[0, :, 4, 4] += 1
    difference = (network(changed) - network(images)).abs().sum(1)[0] > 1e-9
    assert difference[4, 4] and difference.sum() > 1 and not difference[15, 15]


def test_a_residual_block_adds_its_input() -> None:
    block = ConvBlock(3, 3)
    nn.init.zeros_(block.body[4].weight)
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(images), images.relu())
    halved = ConvBlock(3, 4, stride=2)
    assert halved(images).shape == (2, 4, 2, 2)


def test_widths_grow_in_eights() -> None:
    network = FACADE.build_model(FacadeConfig(model="unet", depth=4, width=16, growth=1.6))
    assert isinstance(network, UNet)
    coarse = [block.body[3].out_channels for block in (network.first, *network.down)]
    assert coarse == [16, 24, 40, 64, 104]  # 16, 25.6, 41.0, 65.5, 104.9
    assert count(network) < 1e6


NETWORKS = {
    "two_conv": (FASHION, FashionConfig(batch_norm=True, dropout=0.1), (1, 28, 28)),
    "residual": (FASHION, FashionConfig(model="residual", width=8, dropout=0.1), (1, 28, 28)),
    "unet": (FACADE, FacadeConfig(model="unet", image_size=32, width=8), (3, 32, 32)),
    "residual unet": (
        FACADE,
        FacadeConfig(model="unet", block="residual", norm="group", depth=2, dropout=0.1, width=8),
        (3, 32, 32),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_take_any_number_of_images(name: str) -> None:
    task, config, shape = NETWORKS[name]
    network = task.build_model(config).to(memory_format=torch.channels_last)
    network.train()(torch.randn(8, *shape))  # running statistics that are not those of the start
    model = Normalized(network, *task.normalization).eval()
    dynamic = {"images": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (torch.rand(2, *shape),), dynamic_shapes=dynamic)
    for num in (1, 3):
        images = torch.rand(num, *shape)
        assert torch.allclose(program.module()(images), model(images), atol=1e-4)


@pytest.mark.parametrize("inputs", [1, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_double_precision(inputs: int, stride: int) -> None:
    block = ConvBlock(inputs, 6, stride)
    images, weights = torch.randn(32, inputs, 28, 28), torch.randn(32, 6, 28, 28)
    found = {}
    for kind, layout in ((torch.float32, torch.channels_last), (torch.float64, None)):
        block.zero_grad()
        block.to(kind, memory_format=layout or torch.contiguous_format)
        outputs = block(images.to(kind, memory_format=layout or torch.contiguous_format))
        (outputs * weights.to(kind)[:, :, : outputs.shape[2], : outputs.shape[3]]).sum().backward()
        found[kind] = [p.grad.double() for p in block.parameters() if p.grad is not None]
    for single, double in zip(*found.values(), strict=True):
        assert torch.allclose(single, double, atol=1e-3 * float(double.abs().max()))


@pytest.mark.parametrize("name", ["two_conv", "residual"])
def test_first_layer_filters_are_drawn(name: str, sample) -> None:
    from study.training.batches import Batches
    from study.training.evaluation import evaluate

    task, config, _ = NETWORKS[name]
    val = task.load_splits(sample, config).val
    network = task.build_model(config)
    batches = Batches(val, torch.device("cpu"), task.normalization)
    _, meter, seen = evaluate(task, network, batches, val, batch_size=64, precision="auto")
    figure_data = task.figure_data(network, meter, seen)
    assert figure_data["filters"].shape[1] == 1
    assert "filters" in task.figures(figure_data, "a note")
