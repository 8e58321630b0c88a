"""The command line.

A concept goes from your pictures to a registered model in three steps: **cones new** writes its rows into params.yaml,
**make run** (or `dvc repro` and `cones register`, or the flow) searches, evaluates and registers them, and
**cones lookup** or **cones predict** use the champion.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cones.common.choices import Task, Values
from cones.common.escaping import printable
from cones.common.process import plain_errors, share_the_cores

if TYPE_CHECKING:
    from cones.cli.recognise import Found

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
DEVICE = "Where the base model runs: cpu, cuda, cuda:1; auto is the GPU where there is one."
OBJECTS = {
    "components": "each connected part of what a mask marks",
    "whole": "all that a mask marks of a class",
    "instances": "all that has one value in a mask",
}
FETCH = "Fetch the base model from the hub though params.yaml here does not name it; at a terminal it is asked."
CONCEPT = "A registered concept's name (its champion is used), a URI such as models:/cells/3, or a Concept file."


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What to call the concept.")],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Your pictures: a folder of class folders (with or without train, val and test), a CSV with the "
            "columns path, label and if wanted split, or a data set in CoOp's layout; for detection a folder of COCO, "
            "Pascal VOC, YOLO or LabelMe, or pictures with masks; for generation a folder of a few pictures of one "
            "subject. Asked for if left out."
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="What it is for, where the folder can be read in two ways, or to find boxes where it has masks."
        ),
    ] = None,
    values: Annotated[
        Values | None,
        typer.Option(
            help="What the values of masks stand for, where there are more than two: classes, single objects "
            "(instances), or shades of one mask."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="An entry of the table `backbones` of params.yaml; clip-tiny if left out, for detection glip-tiny."
        ),
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Training pictures a class; at most 16 if left out.")] = None,
    say: Annotated[
        list[str] | None, typer.Option(help='What a class is called in a sentence, as `RBC="red blood cell"`.')
    ] = None,
    drop_demo: Annotated[
        bool | None, typer.Option("--drop-demo/--keep-demo", help="Remove the rows over generated pictures.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take what the options leave open.")] = False,
) -> None:
    """Write the rows for your own pictures into params.yaml: zero-shot, CoOp or another rival, and ConES.

    Looks at the folder, shows the classes it finds and asks what to call them. Nothing else of the file changes. Data
    with boxes is for detection; where each object has a mask and the base model draws masks, for segmentation. A folder
    of pictures beside one of masks, and x_mask.png beside x.png, are masks. A plain folder of pictures is one subject
    to make new pictures of; say what kind of thing it is. Where a folder can be read in two ways, say which by --task.

    Example: **cones new cells --source scans/cells**
    """  # fmt: skip
    from cones.cli.new import default_backbone, default_shots, task_of, write_rows
    from cones.cli.recognise import look_at
    from cones.cli.recognise_volumes import is_volumes, look_at_volumes
    from cones.common.outputs import refuse_unwritable
    from cones.config.params import load_params

    refuse_unwritable(Path(), ["params.yaml"], "the file")
    source = (source or Path(typer.prompt("Folder of your pictures"))).expanduser()
    found = look_at_volumes(source, task) if is_volumes(source) else look_at(source, task, values)
    backbone = backbone or default_backbone(found)
    does = task_of(found, load_params().entry("backbones", backbone))
    _show(found)
    told = dict(pair.split("=", 1) for pair in say or [] if "=" in pair)
    unknown = [pair for pair in say or [] if pair.split("=", 1)[0] not in found.classes or "=" not in pair]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not CLASS=WORDS for a class of {source}", param_hint="--say")
    if not yes and not told and len(found.classes) <= 12:
        print("What is each class called in a sentence? Enter keeps the name.")
        told = {c: typer.prompt(f"  {printable(c)}", default=c.replace("_", " ")) for c in found.classes}
    if drop_demo is None:
        drop_demo = not yes and typer.confirm("Drop the demo rows (generated pictures)?", default=False)
    shots = shots or default_shots(found)
    rows = write_rows(name, found, backbone, shots, told, drop_demo)
    each = f"{shots} pictures a class" if shots else "all training pictures"
    print(f"params.yaml now has {', '.join(rows)}, for {does} with {backbone} and {each}. Next:")
    print(f"  make run              (or: dvc repro && cones register)\n  cones lookup {name}")


def _show(found: "Found") -> None:
    """Print what a folder holds."""
    if found.one_subject:
        print(f"{found.pictures} pictures of one subject or in one style, to make new ones of")
        return
    objects = f"{sum(found.counts.values())} objects {'with masks ' * found.has_masks}in " * found.has_objects
    if found.thing != "picture":
        objects = "marked in "
    how = "with splits of their own" if found.has_splits else "to be divided into training, validation and test"
    if found.divided:
        how += f", {' and '.join(found.divided)} to be divided off train"
    print(f"{len(found.classes)} classes, {objects}{found.pictures} {found.thing}s {how}:")
    counts = ", ".join(f"{c} ({n})" for c, n in list(found.counts.items())[:30])
    print(f"  {printable(counts)}", "..." * (len(found.classes) > 30))
    if found.entry["kind"] == "masks":
        print(f"An object is {OBJECTS[found.entry['objects']]}; `objects` in params.yaml has it otherwise.")


@app.command()
def check() -> None:
    """Read params.yaml and name every mistake in it; nothing is loaded or run."""
    from cones.config.params import load_params

    params = load_params()
    print(f"params.yaml is sound: {len(params.concepts)} concepts, {len(params.rows())} rows")


@app.command()
def why(name: Annotated[str, typer.Argument(help="A row, a concept or a data set of params.yaml.")]) -> None:
    """Say what changed since a row was last made: a setting, the base model, a code file, its data.

    That is why the next `dvc repro` makes it again.
    """
    from cones.cli.why import explain
    from cones.config.params import load_params

    lines = list(explain(load_params(), name))
    for line in lines:
        print(printable(line))
    if not lines:
        print(f"nothing changed since {name} was last made")


@app.command()
def doctor(
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Read DVC's cache, encoded/ and cache/ as well and name what is damaged in them."),
    ] = False,
) -> None:
    """Show versions, device, servers and base models; say what is missing and what to do about it.

    Ends with exit code 1 if something is missing that a run needs.
    """
    from cones.cli.doctor import examine, show

    if not show(examine(cache)):
        raise typer.Exit(1)


servers = typer.Typer(no_args_is_help=True, help="The project's Prefect and MLflow servers.")
app.add_typer(servers, name="servers")


@servers.command("init")
def init_servers() -> None:
    """Make the passwords of the project's servers, once: in `.env`, readable by you alone and ignored by git.

    Prefect's server, worker and client read that file when they start in the project's folder, docker compose hands it
    to its containers. Passwords that are there stay; they are never printed.
    """
    from cones.cli.servers import PASSWORDS, make_passwords

    made = make_passwords()
    print(f"{PASSWORDS} {'now has' if made else 'already has'} the passwords of this project's servers, for you alone")


@app.command()
def register() -> None:
    """Mirror the finished rows and studies to MLflow and register the rows; doing it again adds nothing.

    Each row becomes a version of its concept's model; the best on validation has the alias `champion`. A study becomes
    a run with its cells below it, in the experiment `studies`, and registers no model. The registry is
    `mlflow.db` in the project's folder, or the server that MLFLOW_TRACKING_URI names.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cones.common.redaction import redacted
    from cones.config.params import load_params
    from cones.registry.client import tracking_uri
    from cones.registry.register import register as register_rows
    from cones.registry.versions import look_up

    params = load_params()
    found = register_rows(params)
    title = Text(printable(redacted(tracking_uri())))
    table = Table("concept", "version", "row", "validation", "", title=title, title_justify="left")
    for r in found:
        marks = " ".join(m for m in ("new" * r.new, "champion" * r.champion) if m)
        table.add_row(*(Text(printable(cell)) for cell in (r.name, r.version, r.row, r.score, marks)))
    if found:
        Console().print(table)
    crowned = {r.name for r in found if r.champion}
    for name in sorted({r.name for r in found} - crowned):
        best = look_up(name)
        print(
            f"champion of {name} stays version {best.version}: {best.row}, val {best.score}, the best of every version"
            " registered (the report names the best of today's rows)"
        )
    left = sorted(set(params.rows()) - {r.row for r in found})
    if left:
        print(f"not finished, so not registered: {', '.join(left)}; `dvc repro` finishes them")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of the flow runs, for programs.")] = False,
) -> None:
    """Show what runs where, since when, on which GPU, and what waits for what, by the Prefect server.

    Of every flow that the server of PREFECT_API_URL knows and that is not over, whoever started it on whatever machine.
    """
    from cones.cli.status import become_status

    become_status(["--json"] * as_json)


@app.command()
def lookup(name: Annotated[str, typer.Argument(help="A concept's name, as in params.yaml.")]) -> None:
    """Print the champion of a registered concept: version, row, validation metrics and URI.

    The champion is the best on validation of every version ever registered. The report names the best of the rows in
    params.yaml as they are now: where these differ, a line says so.
    """
    from cones.config.params import load_params
    from cones.registry.versions import beside_report, look_up

    found = look_up(name)
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in found.val.items())
    told = f"{found.name} version {found.version}, on validation the best of every version registered: {found.score}"
    for line in (told, f"  row  {found.row}", f"  val  {metrics}", f"  URI  models:/{name}@champion"):
        print(printable(line))
    params = load_params() if Path("params.yaml").exists() else None
    beside = beside_report(found, params) if params is not None and name in params.concepts else None
    if beside is not None:
        print(f"  {beside}")


@app.command()
def predict(
    concept: Annotated[str, typer.Argument(help=CONCEPT)],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them; or volumes.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and the drawn pictures.")] = Path(
        "predictions"
    ),
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, if it is not found by its name.")] = None,
    draw: Annotated[bool, typer.Option(help="Draw the pictures with what they are taken for.")] = True,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Leave out boxes below this score; if left out, the concept's own threshold."),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch", help=FETCH)] = None,
    dicom_seg: Annotated[
        bool,
        typer.Option(
            help="Of a DICOM series, write a DICOM segmentation as well; it has the patient's name, by standard."
        ),
    ] = False,
) -> None:
    """Say what pictures show: predictions.json, and each picture drawn with its label, or its boxes and masks.

    For detection and segmentation predictions.json is a COCO data set, whose annotations have scores. Of a volume, a
    NIfTI or DICOM file or a folder with a series, what is found comes back on its grid: X_seg.nii.gz, X_lesions.csv.

    Example: **cones predict cells smear.png more-smears/ --out found**
    """
    from cones.inference.files import predict_files

    found = predict_files(concept, pictures, out, base, draw, threshold, device, fetch, dicom_seg)
    for path, prediction in found[:20]:
        print(printable(f"{path}  {prediction}"))
    print(printable(f"{len(found)} predictions in {out / 'predictions.json'}"))


@app.command()
def serve(
    concept: Annotated[str, typer.Argument(help=CONCEPT)],
    host: Annotated[
        str, typer.Option(help="Where to listen; where other machines reach it, CONES_SERVE_TOKEN must be set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of that host; 0 takes a free one.")] = 5001,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, if it is not found by its name.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch", help=FETCH)] = None,
) -> None:
    """Answer over HTTP what pictures show, or make pictures, until Ctrl-C; unlike MLflow's own server it runs no code
    out of the registry.

    For programs of this machine. For other machines set CONES_SERVE_TOKEN, which each request must then bring, give
    --host, and put a proxy with TLS before it: the token travels in the open.

    Example: **cones serve cells**, then **curl -H "Content-Type: image/png" --data-binary @smear.png
    http://127.0.0.1:5001/predict**
    """
    from cones.inference.serve import serve as serve_concept

    serve_concept(concept, host, port, device, base, fetch)


@app.command()
def generate(
    concept: Annotated[str, typer.Argument(help=CONCEPT)],
    prompt: Annotated[
        str | None, typer.Option(help="A sentence with {} where the concept stands; its first template if left out.")
    ] = None,
    n: Annotated[int, typer.Option("--number", "-n", min=1, help="How many pictures.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise; the same seed gives the same pictures.")] = 0,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another concept by its name in the prompt, as `dog=rex` for {dog}; of the same base model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, if it is not found by its name.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Scale of classifier-free guidance.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch", help=FETCH)] = None,
) -> None:
    """Make pictures of a concept of generation, as PNG files.

    Example: **cones generate rex --prompt "a photo of {} on the beach" -n 8**
    """
    from cones.common.files import fresh_file, write_picture
    from cones.common.outputs import refuse_unwritable
    from cones.inference.files import open_concept

    file_name = "{:05d}-{:03d}.png".format
    refuse_unwritable(out, [file_name(seed, 0), file_name(seed, n - 1)])
    wrong = [pair for pair in also or [] if not all(pair.partition("=")[::2])]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not NAME=CONCEPT", param_hint="--also")
    others = {name: open_concept(c, base, fetch=fetch) for name, c in (p.split("=", 1) for p in also or [])}
    pictures = open_concept(concept, base, device, fetch).generate(prompt, n, seed, others, guidance, steps)
    for i, picture in enumerate(pictures):
        with fresh_file(out / file_name(seed, i)) as temporary:
            write_picture(temporary, picture, "PNG")
    print(printable(f"{len(pictures)} pictures in {out}"))


@app.command()
def export(
    concept: Annotated[str, typer.Argument(help=CONCEPT)],
    prompt: Annotated[
        str | None, typer.Option(help="A sentence with {} where the concept stands; its first template if left out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("prompt_embeds.safetensors"),
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, if it is not found by its name.")] = None,
    dtype: Annotated[
        str, typer.Option(help="What the pipeline computes in, and so the embeddings: float32, float16 or bfloat16.")
    ] = "float32",
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch", help=FETCH)] = None,
) -> None:
    """Write a concept of generation as `prompt_embeds` and `negative_prompt_embeds` for diffusers' own pipelines."""
    from cones.common.outputs import refuse_unwritable
    from cones.inference.export import export_embeds
    from cones.inference.files import open_concept

    refuse_unwritable(out.parent, [out.name])
    written = export_embeds(open_concept(concept, base, device, fetch), prompt, out, dtype)
    told = ", ".join(f"{name} {shape}" for name, shape in written.items())
    print(printable(f"{out} holds {told} in {dtype}"))
    print(f"load the pipeline in that: StableDiffusionPipeline.from_pretrained(..., torch_dtype=torch.{dtype})")


@app.command()
def join(
    concepts: Annotated[list[str], typer.Argument(help=f"Two or more. {CONCEPT}")],
    out: Annotated[Path, typer.Option(help="The Concept file to write.")] = Path("joined.safetensors"),
    rename: Annotated[
        list[str] | None,
        typer.Option(help='Another label for a class of the Concepts after the first, as `--rename cell="B cell"`.'),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, if it is not found by its name.")] = None,
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch", help=FETCH)] = None,
) -> None:
    """Make one Concept with the classes of several that were searched on one base model; nothing is searched again.

    Example: **cones join cells parasites --out blood.safetensors**, then **cones predict blood.safetensors smear.png**
    """
    from cones.common.outputs import refuse_unwritable
    from cones.inference.files import open_concept
    from cones.inference.join import join as join_concepts
    from cones.inference.join import refuse_taken, save_joined

    refuse_unwritable(out.parent, [out.name])
    refuse_taken(out)
    wrong = [pair for pair in rename or [] if not all(pair.partition("=")[::2])]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not OLD=NEW", param_hint="--rename")
    opened = [open_concept(c, base, "cpu", fetch) for c in concepts]
    joined = join_concepts(opened, dict(p.split("=", 1) for p in rename or []))
    save_joined(joined, out)
    print(printable(f"{out} has {len(joined.card.classes)} classes: {', '.join(joined.card.classes)}"))


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; remove what is shown and not kept.")] = False,
    rows: Annotated[
        bool, typer.Option("--rows", help="Remove the results of data, concepts and rows that params.yaml has no more.")
    ] = False,
    days: Annotated[float, typer.Option(min=0, help="After how many days without use a cache is stale.")] = 30,
) -> None:
    """Show what nothing uses any more and how large it is, and remove it after asking.

    That is: checkpoints that no row goes on from, as it or the code was edited; features, maps and class pictures under
    `cache/` that were not used for a month; files that killed processes left half written. Nothing is removed while a
    stage of data, of a concept or of a row, a flow or a registration runs here.
    """
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    from cones.cli.clean import find_stale, remove_stale
    from cones.config.params import load_params

    params = load_params()
    stale = find_stale(params, days, rows)
    if not stale:
        print("nothing is stale")
        return
    table = Table("", "why", "size", "")
    table.columns[0].overflow = "fold"
    for entry in stale:
        cells = (entry.path, entry.why, decimal(entry.size), "kept" * entry.kept)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)
    if not rows and any(entry.kept for entry in stale):
        print("kept are results, which `--rows` removes as well, and what may be of a row that has not begun")
    size = decimal(sum(entry.size for entry in stale if not entry.kept))
    if all(entry.kept for entry in stale) or not (yes or typer.confirm(f"Remove {size}?", default=False)):
        return
    removed = remove_stale(params, days, rows)
    print(f"removed {len(removed)}, {decimal(sum(entry.size for entry in removed))}")


def main() -> None:
    """Run the command line, with expected errors as one message."""
    with plain_errors():
        share_the_cores()
        app()


if __name__ == "__main__":
    main()
