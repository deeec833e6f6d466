"""The plan: passes counted by hand, and every rule of the workflow priced."""

from pathlib import Path

import pytest

from common.errors import VceError
from common.scales import load_scale
from vce import plan as planning
from vce.plan import jobs_to_run, passes_of, plan


def test_passes_by_hand():
    config = {
        "splits": {"w": {"systems": 100, "oracles": 50}},
        "classifiers": {"w": {"plain": {"epochs": 2}, "at": {"epochs": 3, "adversary": {"l2": 1}, "steps": 4}}},
        "oracles": {"w": {"a": {"epochs": 10}}},
        "diffusion": {"w": {"epochs": 5}},
        "seeds": [0, 1],
        "svce": {
            "starts": {"pairs": {"n": 7}},
            "groups": {"g": [{"classifiers": ["at", "plain"], "starts": "pairs", "cells": ["c"]}]},
            "cells": {
                "c": [
                    {"optimiser": "afw-b", "iterations": 9, "strengths": [1, 2]},
                    {"optimiser": "minimal", "strengths": [0.9]},
                ]
            },
            "robustness": {"n": 20, "iterations": 4, "radii": {"w": {"l1": 1, "l2": 1}}, "classifiers": {"w": ["at"]}},
        },
    }
    assert passes_of("classifiers", config) == 2 * 100 + 3 * 5 * 100
    assert passes_of("oracles", config) == 10 * 50 and passes_of("diffusion", config) == 500
    assert passes_of("svce_explain_g", config) == 2 * 7 * (2 * 10 + planning.ROUNDS * 76)
    assert passes_of("svce_robustness", config) == 2 * 2 * 20 * 5
    assert passes_of("svce_verdicts", config) == 0


def test_passes_of_clarity_by_hand():
    recipe = {"members": 3, "epochs": 5}
    cells = [{"method": "direction", "spaces": ["p"], "sizes": [1, 3]}, {"method": "schut", "names": ["p.0", "p-m3"]}]
    config = {
        "splits": {"w": {"systems": 100, "oracles": 50}},
        "vae": {"a-b": {"world": "w", "seeds": [0, 1], "epochs": 3}, "c": {"world": "w", "seeds": [0], "epochs": 7}},
        "vae_jobs": [["a-b", "c"]],
        "autoencoders": {"w": {"epochs": 4}},
        "clarity": {
            "systems": {"a-b": {"world": "w", "singles": 2, "spaces": {"p": recipe, "pr": {**recipe, "epochs": 2}}}},
            "train_jobs": [["a-b"]],
            "starts": {"few": {"first": 10, "n": 30}, "all": {"n": 30}},
            "groups": {
                "g": [{"systems": "a-b", "starts": "few", "cells": cells}],
                "h": [{"systems": "a-b", "starts": "all", "cells": cells[1:]}],
            },
            "jobs": [["g"], ["g", "h"]],
        },
        "svce": {},
    }
    assert passes_of("vae_a_b_c", config) == (2 * 3 + 7) * 100 and passes_of("class_autoencoders", config) == 200
    assert passes_of("clarity_train_a_b", config) == 3 * (5 + 2) * 100
    steps = planning.SEARCH_STEPS
    few, every = 20 * (steps["direction"] * (2 + 3) + steps["schut"] * 4), 30 * steps["schut"] * 4
    assert passes_of("clarity_explain_g", config) == few and passes_of("clarity_explain_g_h", config) == few + every
    assert passes_of("clarity_measure", config) == 0


def test_passes_of_disc_by_hand():
    cells = [{"method": "inr"}, {"method": "iso", "change_of": "inr"}, {"method": "pixel-ascent", "strengths": [1, 2]}]
    config = {
        "splits": {"w": {"systems": 100}, "faces-old": {"systems": 50}},
        "disc": {
            "companions": {"w": {"epochs": 3}},
            "regressors": {"age": {"epochs": 7}},
            "train_jobs": [["w", "age"]],
            "jobs": [["ladder", "g"]],
            "recipes": {"w": {"fit": 20, "steer": 30}},
            "groups": {
                "ladder": [{"world": "w", "n": 10, "cells": cells}], "g": [{"world": "w", "n": 4, "cells": cells[:1]}],
            },
            "hypotheses": [{"world": "w", "n": 5, "levels": [0.1, 0.2]}],
            "students": {"methods": ["inr", "iso"], "both": ["inr"], "seeds": [0, 1], "recipe": {"epochs": 6}},
        },
        "svce": {},
    }  # fmt: skip
    assert passes_of("disc_train_w_age", config) == 3 * 100 + 7 * 50
    assert passes_of("disc_explain_ladder_g", config) == 10 * (50 + 50 + 52) + 4 * 50
    assert passes_of("disc_hypotheses", config) == 5 * (20 + 2 * 30)
    assert passes_of("disc_students", config) == 4 * 2 * 6 * 10 and passes_of("disc_measure", config) == 0


def test_passes_of_fido_by_hand():
    cells = [
        {"method": "ssr", "fill": "net"},
        {"method": "bbmp", "fill": "blur"},
        {"method": "max"},
        {"method": "rise"},
    ]
    entry = {"world": "w", "starts": "pairs", "n": 10, "cells": cells}
    config = {
        "splits": {"w": {"systems": 100}},
        "infillers": {"w-unet": {"steps": 20}, "w-cvae": {"steps": 10}},
        "fido": {
            "classifiers": {"w": {"cnn": {"epochs": 2}, "l2at": {"epochs": 3, "adversary": {"l2": 1}}}},
            "recipes": {"w": {"search": {"steps": 7, "masks": 3}, "bbmp": {"steps": 9}}},
            "jobs": [["main", "rest"]],
            "groups": {"main": [entry], "rest": [{**entry, "starts": "sweeps", "n": 4, "cells": cells[:1]}]},
            "measure": {"suppress": {"pairs": ["net", "mean"]}},
            "photos": {"images": ["a", "b"], "steps": 5, "masks": 4},
        },
        "svce": {},
    }
    assert passes_of("fido_train_0", config) == 3 * 100 * (2 + 3 * 3)
    assert passes_of("fido_explain_main_rest", config) == 10 * (2 * 7 * 3 + 2 * 9 + 1 + 250) + 4 * 2 * 7 * 3
    every = planning.MAP_PASSES
    assert passes_of("fido_measure_main_rest", config) == 10 * 4 * (2 * planning.CURVE + every) + 4 * every
    assert passes_of("fido_photos", config) == 2 * 2 * 5 * 4 and passes_of("fido_tables", config) == 0
    assert passes_of("infiller", config) == 15 * planning.INFILL_BATCH


def test_passes_of_the_comparison_by_hand():
    shift = {"shift": {"steps": 5, "batch_size": 4}}
    painter = {"architecture": "unet", "steps": 2}
    config = {
        "splits": {"w": {"systems": 100}},
        "comparison": {
            "classifiers": {"w": {"standard": {"epochs": 2}, "l2at": {"epochs": 3, "adversary": {"l2": 1}}}},
            "worlds": {
                "w": {
                    "classifiers": {"standard": [1], "l2at": [0, 1]},
                    "n": {"standard": 8, "l2at": 10},
                    "vae": {"images": 50, "epochs": 3},
                },
                "v": {"classifiers": {"l2at": [0, 1]}, "n": {"l2at": 7}, "vae": "v", "runner_up": {"l2at": 2}},
                "u": {"classifiers": {"l2at": [0, 1]}, "n": {"l2at": 3}},
            },
            "methods": {
                "ascent": {"settings": {"iterations": 9}, "strengths": {"w": [1, 2], "v": [1], "zoo": [1, 2, 3]}},
                "inversion": {"settings": {"fit": 20, "steer": 10}, "strengths": {"w": [0.9]}},
                "maps": {"settings": {"steps": 6, "masks": 4}, "strengths": {"v": [0.1]}, "prepare": {"u": painter}},
                "shift": {"strengths": {"w": [1], "v": [1]}, "prepare": {"w": shift, "v": shift}},
            },
            "jobs": [["ascent", "inversion"], ["maps", "shift"]],
            "zoo": {"recipe": {"clean": 2, "planted": 4, "images": 6, "epochs": 5}, "n": 2},
            "sanity": {"world": "w", "n": 4},
        },
    }
    assert passes_of("comparison_classifiers_0", config) == 100 * 3 * 3
    assert passes_of("comparison_classifiers_1", config) == 100 * (2 + 3 * 3)
    assert passes_of("comparison_prepare", config) == 50 * 3 + 2 * 20 + 20 + 2 * planning.INFILL_BATCH
    assert passes_of("comparison_explain_ascent", config) == 18 * 20 + 9 * 10 + 18 * 30
    assert passes_of("comparison_explain_maps", config) == 9 * 24 + (18 + 9) * planning.LATENT_STEPS
    nets = 2 + 4 * planning.CUES + planning.SEALED
    assert passes_of("comparison_zoo", config) == nets * 30
    assert passes_of("comparison_shortcuts", config) == nets * 2 * 30
    assert passes_of("comparison_sanity", config) == 3 * 4 * (20 + 30 + planning.LATENT_STEPS)
    assert passes_of("comparison_cells", config) == 0


def test_the_zoo_has_as_many_cues_and_sealed_nets_as_the_plan_says():
    from common.data.cues import CUES
    from comparison.zoo import open_key

    seal = load_scale("cpu")["comparison"]["zoo"]["seal"]
    assert (len(CUES), len(open_key(Path("comparison/zoo.key"), seal))) == (planning.CUES, planning.SEALED)


def test_passes_of_the_contrastive_method_by_hand():
    config = {
        "contrastive": {
            "world": {"faces": 100, "vae": {"epochs": 3}, "images": 50, "epochs": 2, "audit_epochs": 4},
            "train_jobs": [["face-gan"], ["faces", "faces-matched"]],
            "systems": {
                "face-gan": {
                    "recipe": {"steps": 7},
                    "settings": {0: {"n": 10, "floor": 3, "nuisances": True, "joint": 5}},
                },
                "faces": {
                    "recipe": {"steps": 4, "batch_size": 8},
                    "settings": {0: {"n": 20, "floor": 2, "compared": True, "local": 3, "neighbours": 4}},
                },
                "faces-matched": {"recipe": {"steps": 2, "batch_size": 8}, "settings": {0: {"n": 20, "floor": 2}}},
            },
            "swept": ["faces"],
            "sweeps": {"faces": {"recipe": {"steps": 3, "batch_size": 8}, "lams": [0, 1], "n": 9, "seeds": [0, 1]}},
        },
        "seeds": [0],
        "svce": {},
    }
    assert passes_of("contrastive_world", config) == 100 * 3 + 50 * (6 * 2 + 4)
    assert passes_of("contrastive_train_face_gan", config) == 7 * planning.SHIFT_BATCH * planning.GAN_TRAINED
    assert passes_of("contrastive_train_faces", config) == 4 * 8 + 2 * 8
    gan = (10 * 5 + 3 * 6 + 5) * planning.GAN_LABELLED
    faces = 20 * 12 + 2 * 6 + 3 * 4 * 6 + 2 * 5 * planning.COMPARED
    assert passes_of("contrastive_measure_face_gan", config) == gan
    assert passes_of("contrastive_measure_faces", config) == faces + 20 * 12 + 2 * 6
    assert passes_of("contrastive_sweep", config) == 2 * 3 * 8
    assert passes_of("contrastive_tables", config) == 0


def test_what_the_plan_knows_of_the_contrastive_method_is_so():
    from papers.contrastive import baselines
    from papers.contrastive.edits import NUISANCES
    from papers.contrastive.systems import NETWORKS
    from papers.contrastive.train import Recipe

    assert len(NUISANCES) == planning.NUISANCES and len(NETWORKS) == 7
    assert Recipe(1).batch_size == planning.SHIFT_BATCH
    assert sum(forward + backward for forward, backward in baselines.PASSES.values()) <= planning.COMPARED


def test_what_the_plan_knows_of_fido_is_so():
    from common.generators.inpainting import Recipe
    from papers.fido import measure, train

    assert planning.CROPS == 1 + train.ZOOMS and len(measure.COUNTS) == planning.CURVE
    assert Recipe("unet", 1).batch_size == planning.INFILL_BATCH


def test_every_method_of_clarity_has_a_price():
    from papers.clarity.shards import METHODS

    assert planning.SEARCH_STEPS.keys() == METHODS.keys()


def test_rounds_are_those_of_the_method():
    from papers.svce.explain import ROUNDS

    assert planning.ROUNDS == ROUNDS


def test_every_heavy_rule_of_a_scale_has_passes():
    jobs, _ = jobs_to_run("smoke")
    config = load_scale("smoke")
    for rule in jobs:
        heavy = rule in ("classifiers", "oracles", "diffusion", "class_autoencoders", "svce_robustness", "svce_photos")
        heavy |= rule.startswith(("svce_explain_", "vae_", "clarity_train_", "clarity_explain_"))
        heavy |= rule.startswith(("disc_train_", "disc_explain_")) or rule in ("disc_hypotheses", "disc_students")
        heavy |= rule.startswith(("fido_train_", "fido_explain_", "fido_measure_"))
        heavy |= rule in ("infiller", "fido_photos", "contrastive_world", "contrastive_sweep")
        heavy |= rule.startswith(("contrastive_train_", "contrastive_measure_"))
        heavy |= rule.startswith(("comparison_classifiers_", "comparison_explain_"))
        heavy |= rule in ("comparison_prepare", "comparison_zoo", "comparison_shortcuts", "comparison_sanity")
        assert (passes_of(rule, config) > 0) == heavy, rule


def test_a_plan_has_positive_times():
    targets, _ = plan("smoke")
    assert all(target.seconds > 0 and target.gib > 0 and target.jobs > 0 for target in targets)


def test_an_unknown_scale_is_named():
    with pytest.raises(VceError, match=r"scale 'huge': there is no config/huge\.yaml; choose one of"):
        plan("huge")
