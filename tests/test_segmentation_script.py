"""training/segmentation.py: its scenes and their masks, and the scores."""

import numpy as np
import pytest
from PIL import Image

from tests.test_training import script

segmentation = script("segmentation")
PLAN = segmentation.Plan(scene=48)


def test_a_mask_is_the_articles_pixels():
    article = np.zeros((28, 28), np.uint8)
    article[4:24, 9:19] = 200  # 20 x 10
    backgrounds = [Image.new("RGB", (96, 96))]
    for seed in range(5):
        random = np.random.default_rng(seed)
        scene, mask = segmentation.compose(
            article[np.newaxis], np.array([7]), backgrounds, PLAN, random
        )
        assert scene.shape == (48, 48, 3)
        assert set(np.unique(mask)) == {0, 3}  # the third article is Fashion-MNIST's class 7
        covered = scene.max(-1) > 0
        # The mask ends where an article covers half of a pixel.
        assert (covered[mask == 3]).all()
        assert np.mean(covered[mask == 0]) < 0.1


def test_an_article_has_the_planned_size():
    article = np.zeros((28, 28), np.uint8)
    article[4:24, 9:19] = 200
    for seed in range(5):
        grey, alpha = segmentation.cut_out(
            article, PLAN.object_sides, PLAN.scene, np.random.default_rng(seed)
        )
        assert grey.shape == alpha.shape
        assert 0.34 * 48 <= alpha.shape[0] <= 0.66 * 48
        assert alpha.shape[1] == pytest.approx(alpha.shape[0] / 2, abs=1)
        assert alpha.min() == 1.0


def test_iou_by_hand():
    truth = np.array([[[0, 0], [1, 1]]])
    answer = np.array([[[0, 1], [1, 1]]])
    confusion = segmentation.confusions(answer, truth)
    assert confusion.shape == (1, 5, 5)
    ious = segmentation.class_ious(confusion.sum(0))
    np.testing.assert_allclose(ious[:2], [1 / 2, 2 / 3])
    assert np.isnan(ious[2:]).all()
    result = segmentation.tested(np.tile(answer, (4, 1, 1)), np.tile(truth, (4, 1, 1)), 0)
    assert result["mean_iou"] == pytest.approx(7 / 12)
    assert result["interval"] == pytest.approx([7 / 12, 7 / 12])
    assert result["pixel_accuracy"] == 0.75


def test_few_photographs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 0 photographs; 10 or more are needed"):
        segmentation.scenes(tmp_path, tmp_path, PLAN)
