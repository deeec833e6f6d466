"""What the methods of the long table are called in figures."""

PATHS = {"apgd/l1/k75": "l1 (APGD)", "afw-b/l1.5/k75": "l1.5 (AFW)", "apgd/l2/k75": "l2 (APGD)"}
ANCHORS = {"random": "random", "class-mean": "class mean", "nearest-real": "nearest real", "twin": "true twin"}
THRESHOLDED = {"apgd/l2/k75/thresholded": "l2 cut to l1.5's pixels"}
NAMES = {
    **PATHS,
    **ANCHORS,
    **THRESHOLDED,
    "pvce/l2": "l2-pVCE",
    "blended": "blended diffusion",
    **{method.replace("k75", "k25"): name for method, name in (PATHS | THRESHOLDED).items()},
}
SYMBOL = {"blended": "λ"}
OPTIMISERS = {"afw-a": "AFW, variant A", "afw-b": "AFW, variant B", "apgd": "APGD", "fw": "plain FW"}
