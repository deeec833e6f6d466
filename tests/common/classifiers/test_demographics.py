"""The packaged gender and age classifiers: the reference evaluator of ONNX computes the same."""

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator

from common.classifiers.demographics import AGES, GENDERS, MEANS, age, gender
from common.data.fetch import fetch

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def reference(name, images):
    pixels = (255 * images.numpy() - np.array(MEANS, dtype=np.float32).reshape(1, 3, 1, 1)) / 256
    (found,) = ReferenceEvaluator(onnx.load(fetch(name))).run(None, {"images": pixels.astype(np.float32)})
    return found


def test_probabilities_are_those_of_the_graph():
    small = F.interpolate(IMAGES, (32, 32), mode="bilinear", antialias=True)
    np.testing.assert_allclose(gender()(IMAGES).softmax(1), reference("gender.onnx", small), atol=1e-4)
    np.testing.assert_allclose(age()(IMAGES).softmax(1), reference("age.onnx", IMAGES), atol=1e-4)


def test_logits_are_frozen_and_have_a_gradient_in_the_image():
    for classifier, names in ((gender(), GENDERS), (age(), AGES)):
        images = IMAGES.clone().requires_grad_()
        logits = classifier(images)
        assert logits.shape == (2, len(names)) and classifier.class_names == names
        assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
        assert gradient.abs().sum() > 0
