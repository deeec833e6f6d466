"""`vce`: the command line. Commands import what they need when they run, so that help is instant."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import VceError, one_line_errors
from vce.methods import METHODS, check_pair, find_method
from vce.text import plain

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True)
app.add_typer(data, name="data", help="The versioned data files: list them, add one.")


@app.callback()
def vce() -> None:
    """Visual counterfactual explanations: what has to change in an image for a classifier to see another class?"""


@app.command(no_args_is_help=True)
def explain(
    image: Annotated[list[Path], typer.Option(help="An image file, or a folder of them. Repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder for the results, one folder per image.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="The class to move to: its index, its name, or a unique part of it. fido needs none: the runner-up."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(METHODS)}.")] = "svce",
    classifier: Annotated[
        str | None,
        typer.Option(
            help="A name from 'vce classifiers', a checkpoint FILE.safetensors, or package.module:build; by default"
            " imagenet/efficientnet-lite0. clarity explains its own: clarity/mnist, clarity/scenes or a systems FILE."
            " contrastive: contrastive/smile or contrastive/male."
        ),
    ] = None,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            "--radius",
            "--strength",
            help="Strength of the change; up to 8 values. svce: l1.5 radius, by default 50 75 100 at 224 px. clarity,"
            " disc: own confidence to reach, by default .5 .9 .99. fido: share of the pixels to in-fill, by default"
            " .05 .1 .2 .4. contrastive: multiple of the shift, by default .5 1 1.5. Repeat the flag for each.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random streams.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images explained together, each at all radii; 4 at 224 px take 2 GB.")
    ] = 4,
) -> None:
    """Explain your own images: write counterfactuals, difference maps, an overview and a JSON record for each.

    Example: vce explain --image cat.png --target "Egyptian cat" --out out

    Example: vce explain --method clarity --image digit.png --target 3 --out out

    Example: vce explain --method disc --image cat.png --target "Egyptian cat" --out out

    Example: vce explain --method fido --image cat.png --out out

    Example: vce explain --method contrastive --image face.png --target smile --out out

    Look at out/cat/overview.png first; its pictures and numbers lie beside it.

    An unreadable image gets a record that says why, the others are explained, and the exit code is 1.
    """
    found = find_method(method)
    if target is None and not found.untargeted:
        raise VceError(f"--target: missing, {method} moves an image to a class; name one, such as --target tabby")
    from common.progress import Progress
    from vce.explain import check_strengths, explain_files, find_class, find_images
    from vce.explanation import Request

    strengths = check_strengths(radius) if radius else None
    paths = find_images(image)
    model = found.load_classifier(classifier)
    strengths = strengths or found.strengths(model.image_shape)
    wanted = None if target is None else find_class(model, target)
    request = Request(method, found.load(), model, wanted, strengths, seed, batch_size)
    with Progress(method, total=len(paths), unit="images") as progress:
        records = explain_files(paths, request, out, progress)
    for record in records:
        typer.echo(plain(_line(record)), err=record["status"] == "unreadable")
    typer.echo(f"results in {plain(str(out))}")
    if any(record["status"] == "unreadable" for record in records):
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def diff(
    method_a: Annotated[str, typer.Argument(help=f"One of: {', '.join(METHODS)}.")],
    method_b: Annotated[str, typer.Argument(help="Another one.")],
    image: Annotated[Path, typer.Option(help="An image file.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="The class that both move to: its index, its name, or a unique part of it. Beside fido, which needs"
            " none, by default the runner-up."
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="As for 'vce explain', for the methods that explain any classifier. clarity and contrastive explain"
            " their own, clarity/mnist and contrastive/smile; the target must be a class of both."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page IMAGE-METHOD_A-METHOD_B.html.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random streams.")] = 0,
) -> None:
    """Compare two methods on one image: their whole paths, at equal change, at equal confidence, and their agreement.

    Example: vce diff svce fido --image cat.png

    Example: vce diff svce disc --image cat.png --target "Egyptian cat" --out out

    Example: vce diff clarity svce --image digit.png --target 9 --classifier mnist/lenet5-plain-packaged

    Prints the numbers, and writes them with pictures, difference maps and sliders as one page that needs no network.
    """
    names = (method_a, method_b)
    check_pair(names, target, classifier)
    from rich.console import Console

    from common.files import write_atomic
    from common.progress import Progress
    from vce.diff import compare, find_targets, load_classifiers
    from vce.diff_page import page_path, render
    from vce.diff_text import print_diff
    from vce.explain import check_out

    check_out(out)
    models = load_classifiers(names, classifier)
    targets = find_targets(models, target)
    with Progress(f"{method_a} and {method_b}", total=2, unit="methods") as progress:
        found = compare(image, names, models, targets, seed, progress)
    page = page_path(out, image, names)
    replaced = ", instead of the page that was there" if page.exists() else ""
    write_atomic(page, render(found))
    print_diff(found, Console())
    typer.echo(f"pictures and numbers in {plain(str(page))}{replaced}")


@app.command()
def scores(
    out: Annotated[Path, typer.Option(help="Folder for the tables and the trained shift.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="An attribute to move, as NAME=CLASS@CLASSIFIER; classes are names, numbers or ranges such as 30..80,"
            " separated by commas, against all others. Repeatable. By default the packaged smile and gender."
        ),
    ] = None,
    decision: Annotated[
        list[str] | None, typer.Option(help="A decision that is never asked for, likewise. Repeatable.")
    ] = None,
    generator: Annotated[
        str, typer.Option(help="face-gan, a VAE FILE.safetensors, or package.module:build.")
    ] = "face-gan",
    n: Annotated[int, typer.Option(min=1, help="Images that are edited.")] = 500,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the shift.")] = 400,
    lam: Annotated[float, typer.Option(min=0, help="λ, the price of a longer shift.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shift.")] = 0,
) -> None:
    """Necessity and sufficiency of attributes for decisions of your classifiers, under a generator.

    Of those who have the attribute and got the decision, how many would lose it without (NEC); of those who have
    neither, how many would gain it (SUF). A score is as good as the validity beside it: a failed edit counts as "makes
    no difference".

    Example: vce scores --out out

    Example: vce scores --label smile=happy@common.classifiers.expression:expression --decision
    male=male@common.classifiers.demographics:gender --n 300 --out out
    """
    from common.progress import Progress
    from papers.contrastive import scores as contrastive
    from papers.contrastive.train import Recipe

    system = contrastive.own_system(generator, label or [], decision or [])
    recipe = Recipe(steps, lam=lam, sparse=True)
    with Progress("scores", total=recipe.steps + system.m + 1, unit="steps") as progress:
        tables = contrastive.scores(system, recipe, n, seed, out, progress.advance)
    typer.echo(contrastive.summary(tables))
    typer.echo(f"tables in {out}")


@app.command()
def classifiers() -> None:
    """List the classifiers that --classifier knows by name."""
    from common.classifiers.pretrained import BUILDERS

    typer.echo("\n".join(BUILDERS))
    typer.echo("also: a checkpoint FILE.safetensors, or an import path package.module:build")


@app.command()
def plan(scale: Annotated[str, typer.Option(help="A file of config/, without its ending.")] = "cpu") -> None:
    """Say what `snakemake all` would do now: jobs, data to fetch, passes, estimated time and memory.

    Example: vce plan --scale smoke
    """
    from rich.console import Console
    from rich.table import Table

    from vce.plan import plan as make_plan

    targets, fetched = make_plan(scale)
    if not targets:
        typer.echo(f"scale {scale}: nothing to do")
        return
    table = Table(title=f"scale {scale}: still to do", title_justify="left")
    for column in ("target", "jobs", "passes", "estimated", "memory per job"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for item in targets:
        minutes = f"{item.seconds / 60:.1f} core-min"
        table.add_row(item.rule, str(item.jobs), f"{item.passes:,}", minutes, f"{item.gib:.1f} GiB")
    total = sum(item.seconds for item in targets) / 60
    Console().print(table)
    typer.echo(f"data to fetch: {', '.join(fetched) or 'none'}")
    typer.echo(f"about {total:.0f} core-minutes, {total / 2:.0f} min on 2 cores")


@app.command()
def verify(
    scale: Annotated[str, typer.Option(help="A scale whose results are committed in reference/.")] = "cpu",
    tier: Annotated[str, typer.Option(help="What every paper has to reach: bitwise, tolerance or statistical.")] = (
        "statistical"
    ),
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Compare the results that lie there; measure nothing.")
    ] = False,
) -> None:
    """Measure a scale again and compare it with the committed results: bit by bit, within what kernels differ by, or
    within each other's intervals. A line for every claim that moved; exit code 1 where a paper falls short of --tier.

    Example: vce verify --scale smoke --tier bitwise

    Pictures that were explained are measured anew; what was not run at all is run first.
    """
    from common.files import ROOT
    from vce.verify import TIERS, compare, differences, measure_again, references

    if tier not in TIERS[:-1]:
        raise VceError(f"--tier {tier}: choose one of {', '.join(TIERS[:-1])}")
    committed = references(scale)
    if not as_is:
        measure_again(scale, list(committed))
    found = [
        compare(part, reference, ROOT / "results" / scale / part / "claims.json")
        for part, reference in committed.items()
    ]
    for part in found:
        typer.echo(f"{part.part:12} {part.tier:12} {part.why or f'{len(part.moved)} claims moved'}".rstrip())
        for line in part.moved:
            typer.echo(f"    {line}")
    others = sorted({text for reference in committed.values() for text in differences(reference)})
    if others:
        typer.echo(f"other surroundings than the committed run's: {'; '.join(others)}")
    if any(TIERS.index(part.tier) > TIERS.index(tier) for part in found):
        raise typer.Exit(1)


@app.command()
def report(
    scale: Annotated[str, typer.Option(help="A file of config/, without its ending.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of the pages; by default results/SCALE/report.")] = None,
) -> None:
    """Build the report from the results that are there, and print the path of its front page. What is missing, or was
    made by another recipe, is named as such.

    Example: vce report --scale smoke
    """
    from common.files import ROOT
    from comparison.report.site import build_scale

    typer.echo(plain(str(build_scale(scale, out, ROOT / "data"))))


@data.command("list")
def data_list() -> None:
    """List the versioned files: name, size, whether the bytes are here, where they come from, licence."""
    from common.data import registry

    for name in registry.names():
        item = registry.read(name)
        here = "here" if (registry.ROOT / "data" / name).is_file() else "not fetched"
        typer.echo(f"{name:32} {item.size:>12,} B  {here:12} {item.source or item.url or '-':42} {item.license}")


@data.command("add")
def data_add(
    file: Annotated[Path, typer.Argument(help="The file whose bytes data/NAME shall point to; NAME is its file name.")],
    source: Annotated[str | None, typer.Option(help="Package that carries it, as name==version.")] = None,
    member: Annotated[str | None, typer.Option(help="Its path inside that package.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the file, or 'unknown'.")] = None,
    url: Annotated[str | None, typer.Option(help="Official address.")] = None,
) -> None:
    """Write the pointer data/NAME.dvc that pins a file by its sha256. The bytes stay where they are, never in git.

    Example: vce data add photo.jpg --license CC0-1.0
    """
    from common.data import registry

    typer.echo(registry.add(file, source=source, member=member, license=license, url=url))


def _line(record: dict) -> str:
    if record["status"] == "unreadable":
        return f"error: {record['error']}"
    source, target = record["source"], record["target"]
    start = f"{record['image']}: {source['name']} {100 * source['confidence']:.1f} %"
    if record["status"] == "skipped":
        return f"{start}: skipped, {record['note']}"
    label = METHODS[record["method"]].label
    row = next(row for row in record["counterfactuals"] if row[label] == record["chosen"])
    ends = [(target["name"], row["confidence"])]
    if METHODS[record["method"]].untargeted:  # what is seen now, and what is left of what was
        seen, left = row["predicted"], (source["name"], row["source_confidence"])
        ends = [left] if seen["index"] == source["index"] else [(seen["name"], seen["confidence"]), left]
    reached = ", ".join(f"{name} {'?' if value is None else f'{100 * value:.1f} %'}" for name, value in ends)
    drawn = record.get("reconstruction_error")
    off = f"; its drawing is {drawn['mean_abs']:.3f} off" if drawn else ""
    if drawn and drawn["target_confidence"] > 0.5:
        off += f" and already {target['name']}"
    return f"{start} -> {reached} at {label} {record['chosen']:g} ({record['status']}){off}"


@one_line_errors
def main() -> None:
    """Entry point: an expected problem is one line on stderr and exit code 2, whatever a file is called."""
    try:
        app()
    except (VceError, OSError) as error:
        named = isinstance(error, OSError) and f"{error.filename or 'file system'}: {error.strerror or error}"
        raise VceError(plain(named or str(error))) from error


if __name__ == "__main__":
    main()
