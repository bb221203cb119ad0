"""Known answers and invariances of the texture terms."""

import pytest
import torch

from losses import (
    COLOUR_WEIGHT,
    METHODS,
    TINY,
    Colour,
    Criterion,
    Gram,
    gram,
    relative_error,
    resampled,
)


def test_gram_by_hand():
    # Two maps of 1x2: [1, 2] and [3, 4]; products 1+4, 3+8, 9+16, over 2 positions.
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert gram(features).tolist() == [[[2.5, 5.5], [5.5, 12.5]]]


def test_gram_has_the_gradient_of_the_plain_product():
    features = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1))  # not symmetric
    flat = features.flatten(2)
    (expected,) = torch.autograd.grad((weights * (flat @ flat.mT) / 12).sum(), features)
    (found,) = torch.autograd.grad((weights * gram(features)).sum(), features)
    torch.testing.assert_close(found, expected)


def test_gram_of_half_precision_is_float32_and_does_not_overflow():
    features = torch.full((1, 2, 4, 4), 300.0, dtype=torch.float16)
    assert gram(features).dtype == torch.float32
    assert gram(features).tolist() == [[[90000.0, 90000.0], [90000.0, 90000.0]]]


def test_gram_does_not_see_where_things_are():
    features = torch.rand(1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    shuffled = features.flatten(2)[:, :, torch.randperm(42)].view_as(features)
    torch.testing.assert_close(gram(shuffled), gram(features))


def test_relative_error_by_hand():
    output, source = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.0]])
    # ((1-3)^2 + (2-4)^2) / (9 + 16), and 0 for the picture that is the source
    assert relative_error(output, source).tolist() == pytest.approx([8 / 25, 0])


def test_relative_error_of_a_flat_source_is_finite():
    error = relative_error(torch.full((1, 4), 1e-4), torch.zeros(1, 4))
    assert error.item() == pytest.approx(4e-8 / TINY)


def test_gram_term_averages_layers_by_hand():
    source = {"a": torch.ones(1, 1, 2, 2), "b": torch.full((1, 1, 2, 2), 2.0)}
    output = {"a": torch.full((1, 1, 2, 2), 2.0), "b": torch.full((1, 1, 2, 2), 2.0)}
    # Grams 4 against 1: (4-1)^2 / 1 = 9; layer b is met: (9 + 0) / 2
    assert Gram(source, ["a", "b"])(output).tolist() == [4.5]
    assert Gram(source, ["b"])(output).tolist() == [0]


def test_gram_term_is_the_same_for_any_scale_of_a_layer(tiny, checkerboard):
    source, output = tiny(checkerboard), tiny(checkerboard.flip(1))
    scaled = [{k: 7 * v for k, v in features.items()} for features in (source, output)]
    torch.testing.assert_close(
        Gram(source, tiny.layers)(output), Gram(scaled[0], tiny.layers)(scaled[1])
    )


def test_resampled_by_hand():
    # Four quantiles of two values lie at -0.25, 0.25, 0.75 and 1.25 of the way from 0 to 1.
    assert resampled(torch.tensor([0.0, 1.0]), 4).tolist() == [0, 0.25, 0.75, 1]
    # Two quantiles of four values lie between the first two, and between the last two.
    assert resampled(torch.tensor([0.0, 2.0, 4.0, 8.0]), 2).tolist() == [1, 6]
    assert resampled(torch.tensor([5.0, 7.0]), 2).tolist() == [5, 7]


def test_colour_by_hand():
    # Half 0, half 1 in each channel: variance 0.25, covariance 0.25 everywhere.
    source = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)
    brighter = {"image": source / 2 + 0.5}  # half 0.5, half 1: covariance 0.0625
    transport = (0.5**2 + 0**2) / 2 / 0.25
    covariance = 9 * (0.25 - 0.0625) ** 2 / (9 * 0.25**2)
    assert Colour({"image": source})(brighter).item() == pytest.approx(transport + covariance)
    assert Colour({"image": source})({"image": source.flip(3)}).item() == 0


def test_colour_of_a_flat_exemplar_is_finite(checkerboard):
    flat = {"image": torch.full((1, 3, 4, 4), 0.5)}
    assert Colour(flat)(flat).item() == 0
    assert Colour(flat)({"image": checkerboard}).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_criterion_is_zero_at_the_source_and_has_gradients_elsewhere(method, tiny, checkerboard):
    criterion = Criterion(method, tiny(checkerboard), tiny.layers)
    assert criterion(tiny(checkerboard)).item() == 0
    output = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    criterion(tiny(output)).backward()
    assert output.grad.isfinite().all()
    assert (output.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_batches_never_mix(method, tiny, checkerboard):
    criterion = Criterion(method, tiny(checkerboard), tiny.layers)
    batch = torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(2)).requires_grad_()
    losses = criterion(tiny(batch))
    assert losses.shape == (3,)
    (together,) = torch.autograd.grad(losses.sum(), batch)
    for i in range(3):
        single = batch[i : i + 1].detach().requires_grad_()
        loss = criterion(tiny(single))
        (alone,) = torch.autograd.grad(loss.sum(), single)
        torch.testing.assert_close(loss[0], losses[i])
        torch.testing.assert_close(alone, together[i : i + 1])


def test_criterion_adds_the_colours(tiny, checkerboard):
    source, output = tiny(checkerboard), tiny(checkerboard * 0.9)
    expected = Gram(source, tiny.layers)(output) + COLOUR_WEIGHT * Colour(source)(output)
    torch.testing.assert_close(Criterion("gram", source, tiny.layers)(output), expected)
    assert Colour(source)(output).item() > 0.01
