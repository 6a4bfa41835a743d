"""The `mindeye2-lite` command. It looks up what to do and leaves the doing to the modules.

Every command imports what it needs when it runs, so that `--help` is instant. A user's mistake
gives one line: exit status 2 if the command line is wrong, 1 if a file, a folder or a value is.
"""

import argparse
import inspect
import json
import sys
from pathlib import Path

from mindeye2_lite import __version__
from mindeye2_lite.config import NORMALIZE, PROFILES, Config


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake costs one line instead of a page of usage."""

    def error(self, message: str):
        """Print the line and leave with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
    except ModuleNotFoundError as error:
        message = f'{error}: python -m pip install -c constraints.txt -e ".[book,dev]"'
    print(f"mindeye2-lite: {message}", file=sys.stderr)
    return 1


def parser() -> Parser:
    """All commands and their options."""
    top = Parser(prog="mindeye2-lite", description="MindEye2, from fMRI to picture and caption")
    top.add_argument("--version", action="version", version=f"mindeye2-lite {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_prepare(commands)
    _add_inspect(commands)
    _add_compare(commands)
    _add_miniatures(commands)
    _add_results(commands)
    _add_sweep(commands)
    _add_bench(commands)
    _add_fetch(commands)
    _add_plan(commands)
    _add_train(commands)
    _add_converter(commands)
    for name, command, text in (
        ("book", book, "run the notebooks that are not fresh and build _build/html"),
        ("picture", picture, "draw book/images/tour.png, the picture of README and book"),
        ("student", student, "write notebooks without solutions to _build/student"),
        ("weights", weights, "list the shipped weights and check their SHA-256"),
        ("doctor", doctor, "show what this machine has and what is missing"),
    ):
        commands.add_parser(name, help=text).set_defaults(command=command)
    return top


def _add_run(commands) -> None:
    sub = commands.add_parser(
        "run", help="voxels to refined pictures and captions, for one subject"
    )
    sub.add_argument("--profile", default="lite", choices=PROFILES)
    sub.add_argument("--subject", type=int, default=1, help="1 to 8")
    sub.add_argument("--sessions", type=int, default=1, help="hours of training data")
    sub.add_argument("--images", type=int, default=8, help="how many test pictures")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--start", type=Path, help="a fine-tuned model: train none")
    sub.add_argument("--out", type=Path, help="folder for pictures and captions")
    sub.add_argument("--device", help="cpu or cuda; default what there is")
    _add_normalize(sub)
    sub.set_defaults(command=run)


def _add_prepare(commands) -> None:
    text = "raw NSD, or your own betas, to the training layout; alone: make the synthetic cohort"
    sub = commands.add_parser(
        "prepare",
        help=text,
        usage="%(prog)s [RAW OUT | --betas FILE --events TSV --images FOLDER OUT] [options]",
    )
    add, own = sub.add_argument, sub.add_argument_group("your own data").add_argument
    add("raw", metavar="RAW", nargs="?", help="folder of the NSD download")
    add("out", metavar="OUT", nargs="?", help="folder to write")
    text = "a NIfTI; of NSD also nsdgeneral or a region, and again for another"
    add("--mask", action="append", help=text)
    add("--image-size", type=int, help="pixels; default 224")
    add("--executor", help="serial, local, local:N or dask://HOST:PORT; default local")
    nsd = sub.add_argument_group("NSD").add_argument
    nsd("--subjects", type=int, nargs="+", help="some of 1 to 8; default all there are")
    nsd("--betas-version", choices=["b1", "b2", "b3"], help="NSD's preparation; default b3")
    nsd("--space", choices=["func1pt8mm", "func1mm"], help="default func1pt8mm")
    own("--betas", nargs="+", metavar="FILE", help=".npy, .h5, .mat, .nii.gz; one or one a session")
    own("--events", nargs="+", metavar="TSV", help="onset, stim_file or trial_type, session, run")
    own("--images", metavar="FOLDER", help="the pictures")
    own("--subject", type=int, help="number of the person; default 1")
    text = "a share of the pictures, or a test picture, and again for another; default proposed"
    own("--test", action="append", metavar="SHARE", help=text)
    own("--captions", metavar="JSON", help="picture -> sentences")
    own("--image-column", metavar="NAME", help="of the events; default stim_file, trial_type")
    text = "events that have no betas, such as n/a, and again for others"
    own("--ignore", action="append", metavar="NAME", help=text)
    own("--sessions-from", choices=["events", "files"], help="default the events if they say")
    own("--seed", type=int, help="of the proposed test pictures; default 0")
    sub.set_defaults(command=prepare)


def _add_inspect(commands) -> None:
    text = "what is in prepared, released or own data; status 1 where it must not be trained on"
    sub = commands.add_parser("inspect", help=text)
    sub.add_argument("path", type=Path, help="folder that prepare wrote, or of the released files")
    sub.add_argument("--subject", type=int, help="default all there are")
    sub.add_argument("--json", type=Path, metavar="OUT.json", help="write the report as JSON")
    sub.add_argument("--figure", type=Path, metavar="OUT.png", help="draw it, for one subject")
    text = "also draw reliability on cortex, by the transforms in this NSD tree: OUT_surface.png"
    sub.add_argument("--surface", type=Path, metavar="RAW", help=text)
    sub.set_defaults(command=inspect_data)


def _add_compare(commands) -> None:
    sub = commands.add_parser("compare", help="how two builds of a person's betas differ")
    sub.add_argument("ours", type=Path, help="folder of the training layout, or a betas file")
    sub.add_argument("released", type=Path, help="the same of the other build")
    sub.add_argument("--subject", type=int, default=1)
    sub.add_argument("--out", type=Path, help="a .csv file: a line per session and voxel")
    sub.set_defaults(command=compare)


def _add_miniatures(commands) -> None:
    sub = commands.add_parser("miniatures", help="train miniatures again, or measure those shipped")
    sub.add_argument("names", nargs="*", metavar="NAME", help="for instance mini-vae")
    sub.add_argument("--measure", action="store_true", help="write results/miniatures.json")
    sub.add_argument("--steps", type=int, help="fewer than the recipe's")
    sub.add_argument("--device", help="cpu or cuda; default what there is")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(command=miniatures)


def _add_results(commands) -> None:
    sub = commands.add_parser("results", help="a long run that writes results/NAME.json")
    sub.add_argument("name", help="for instance one_hour")
    sub.add_argument("--profile", default="lite", choices=PROFILES)
    sub.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    sub.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    sub.add_argument("--pictures", action="store_true", help="also the eight scores of pictures")
    sub.set_defaults(command=results)


def _add_sweep(commands) -> None:
    text = "the paper's table, a curve or an ablation, cell by cell; without NAME, list them"
    sub = commands.add_parser("sweep", help=text)
    sub.add_argument("name", nargs="?", metavar="NAME", help="for instance paper-table, ablations")
    sub.add_argument("--profile", default="lite", choices=PROFILES)
    sub.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...")
    sub.add_argument("--subjects", type=int, nargs="+", help="default the sweep's own")
    text = "serial, local, local:N or dask://HOST:PORT; default local"
    sub.add_argument("--executor", default="local", help=text)
    sub.add_argument("--fresh", action="store_true", help="forget the cells that are there")
    sub.add_argument("--limit-cells", type=int, metavar="N", help="compute so many at most")
    sub.set_defaults(command=sweep)


def _add_bench(commands) -> None:
    text = "how fast and how small reading and scoring are; without NAME, list what there is"
    sub = commands.add_parser("bench", help=text)
    sub.add_argument("name", nargs="?", help="prepare, reading or metrics")
    sub.add_argument("--sessions", type=int, help="of prepare and reading; default 40")
    sub.add_argument("--trials", type=int, help="of a session; default 750")
    sub.add_argument("--voxels", type=int, help="default 15724")
    sub.add_argument("--pairs", type=int, help="of pictures, of metrics; default 1000")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--folder", type=Path, help="with up to 8 GB free; default the cache")
    sub.add_argument("--keep", action="store_true", help="do not delete what was written")
    sub.set_defaults(command=bench)


def _add_fetch(commands) -> None:
    text = "list the real data and networks; with --profile, download what that needs"
    sub = commands.add_parser("fetch", help=text)
    sub.add_argument("--profile", choices=PROFILES)
    sub.add_argument("--subjects", type=int, nargs="+", default=[1], help="some of 1 to 8")
    sub.add_argument("--sessions", type=int, help="of the released model: 1 or 40; default both")
    sub.add_argument("--stages", nargs="+", metavar="STAGE", help="for instance data released")
    sub.add_argument("--list", action="store_true", help="say what that is, and download nothing")
    sub.add_argument("--accept-nsd-terms", action="store_true")
    sub.set_defaults(command=fetch)


def _add_plan(commands) -> None:
    sub = commands.add_parser("plan", help="memory and disk that training takes, and what fits")
    sub.add_argument("--profile", default="paper", choices=PROFILES)
    sub.add_argument("--gpu-gb", type=float, default=16, help="memory of the GPU")
    _add_who(sub)
    sub.set_defaults(command=plan)


def _add_train(commands) -> None:
    sub = commands.add_parser("train", help="pretrain or fine-tune, also on several GPUs")
    sub.add_argument("--profile", default="lite", choices=PROFILES)
    _add_who(sub)
    sub.add_argument("--data", type=Path, help="folder of the training layout")
    sub.add_argument("--start", type=Path, help="model to fine-tune; default from scratch")
    sub.add_argument("--out", type=Path, help="folder for checkpoints and the model")
    sub.add_argument("--seed", type=int, default=0)
    _add_normalize(sub)
    sub.add_argument("--max-steps", type=int, help="fewer epochs if they took more steps")
    sub.add_argument("--no-low-level", action="store_true", help="leave out the low-level head")
    sub.add_argument("--precision", help="fp32, bf16 or fp16; default bf16 where the GPU can")
    sub.add_argument("--accumulate", type=int, default=1, help="micro-batches per batch")
    sub.add_argument("--checkpointing", action="store_true", help="compute twice, keep less")
    sub.add_argument("--eight-bit", action="store_true", help="8-bit optimizer states")
    sub.set_defaults(command=train)


def _add_converter(commands) -> None:
    text = "train the captions' map from bigG's tokens to GIT's, on pictures alone"
    sub = commands.add_parser("converter", help=text)
    sub.add_argument("images", type=Path, help="coco_images_224_float16.hdf5, or one like it")
    sub.add_argument("--out", type=Path, required=True, help="a .safetensors file to write")
    sub.add_argument("--epochs", type=int, default=8)
    sub.add_argument("--batch", type=int, default=64)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", help="cpu or cuda; default what there is")
    sub.set_defaults(command=converter)


def _add_who(sub) -> None:
    sub.add_argument("--subject", type=int, default=1, help="1 to 8; with --pretrain all others")
    sub.add_argument("--sessions", type=int, help="hours of training data; default all")
    sub.add_argument("--pretrain", action="store_true", help="on the seven others")


def _add_normalize(sub) -> None:
    text = (
        "who scales a trial: sessions = its own, of test trials the sessions in use; all = its own "
    )
    text += "(released files); the others: nsd.NORMALIZE"
    sub.add_argument("--normalize", default="sessions", choices=list(NORMALIZE), help=text)


def run(options) -> None:
    """Train what is missing, reconstruct the first test pictures, and keep them as files."""
    from mindeye2_lite import paths, pipeline

    config = Config.of(options.profile)
    out = options.out or paths.runs(options.profile, "run", f"subject{options.subject}")
    pipeline.run(
        config,
        subject=options.subject,
        sessions=options.sessions,
        images=options.images,
        seed=options.seed,
        normalize=options.normalize,
        device=_device(options.device),
        start=options.start,
        out=out,
    )
    print(out)


FOR_BOTH = ("mask", "image_size", "executor")
FOR_NSD = ("subjects", "betas_version", "space")
FOR_OWN = ("betas", "events", "images", "subject", "test", "captions", "image_column", "ignore")
FOR_OWN += ("sessions_from", "seed")


def prepare(options) -> None:
    """Write the training layout and say where."""
    given = {n: v for n in FOR_BOTH + FOR_NSD + FOR_OWN if (v := getattr(options, n)) is not None}
    if own := [name for name in FOR_OWN if name in given]:
        _refuse(given, FOR_NSD, f"is for raw NSD, {_option(own[0])} for your own data")
        _prepare_own(options, given)
    elif options.raw is None:
        _refuse(given, FOR_BOTH + FOR_NSD, "needs data: give RAW and OUT, or --betas")
        from mindeye2_lite import synthetic

        print(synthetic.open_cohort())
    elif options.out is None:
        raise ValueError("prepare needs two folders: mindeye2-lite prepare RAW OUT")
    else:
        _prepare_nsd(options.raw, options.out, given)


def _refuse(given: dict, names: tuple[str, ...], why: str) -> None:
    if wrong := [name for name in names if name in given]:
        raise ValueError(f"{_option(wrong[0])} {why}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _prepare_nsd(raw: str, out: str, given: dict) -> None:
    from mindeye2_lite import nsd

    if "betas_version" in given:
        given["betas"] = given.pop("betas_version")
    if "mask" in given and len(given["mask"]) == 1:
        given["mask"] = given["mask"][0]
    nsd.prepare(raw, out, **{"executor": "local"} | given)
    print(out)


def _prepare_own(options, given: dict) -> None:
    """Also says how to go on."""
    import shlex

    from mindeye2_lite import nsd

    if missing := [name for name in ("betas", "events", "images") if name not in given]:
        raise ValueError(f"your own data need --betas, --events, --images: {_option(missing[0])}?")
    if options.raw is None or options.out is not None:
        raise ValueError("your own data need one folder to write: OUT, before the options")
    if "mask" in given:
        if len(given["mask"]) > 1:
            raise ValueError("your own data take one --mask, a NIfTI or .npy volume")
        given["mask"] = given["mask"][0]
    given["test"] = _share_or_names(given.get("test"))
    files = (given.pop(name) for name in ("betas", "events", "images"))
    split = nsd.from_files(options.raw, *files, **{"executor": "local"} | given)
    size = nsd.Subject(split.root, split.subject).images.shape[-1]
    fits = [name for name in PROFILES if Config.of(name).image_size == size]
    data = shlex.quote(str(split.root))
    print(f"{split}\nwritten to {split.root}, subject {split.subject}; next:")
    print(f"  mindeye2-lite inspect {data}")
    if fits:
        print(f"  mindeye2-lite train --data {data} --subject {split.subject} --profile {fits[0]}")


def _share_or_names(test: list[str] | None) -> float | list[str] | None:
    try:
        return float(test[0]) if test and len(test) == 1 else test
    except ValueError:
        return test


def inspect_data(options) -> int:
    """Print a report per person; status 1 if training or scores on these data would be wrong."""
    from mindeye2_lite import inspection, paths

    there = inspection.people(options.path)
    wanted = [options.subject] if options.subject else there
    if options.surface and not options.figure:
        raise ValueError("--surface needs --figure OUT.png, beside which it is drawn")
    if options.figure and len(wanted) > 1:
        raise ValueError(f"--figure draws one person: choose --subject from {there}")
    reports = []
    for subject in wanted:
        reports.append(inspection.inspect(options.path, subject, progress=sys.stderr.isatty()))
        print(reports[-1])
    if options.json:
        with paths.write_beside(options.json) as beside:
            beside.write_text(json.dumps([report.as_dict() for report in reports], indent=1))
    if options.figure:
        _draw(reports[0], options.figure, options.surface)
    return int(any(report.problems for report in reports))


def _draw(report, out: Path, raw: Path | None) -> None:
    import matplotlib

    matplotlib.use("agg")
    from mindeye2_lite import surfaces, viz, viz_data

    viz.use_style()
    note = f"subject {report.subject}, {report.kind.partition(';')[0]}"
    _save(viz_data.data_report(**report.figure(), note=note), out)
    if raw is not None:
        values, meshes, name = surfaces.of_report(raw, report)
        figure = viz_data.surface_map(values, meshes, note=f"subject {report.subject}; {name}")
        _save(figure, out.with_name(f"{out.stem}_surface{out.suffix}"))


def _save(figure, out: Path) -> None:
    from mindeye2_lite import paths

    kind = out.suffix.removeprefix(".") or "png"
    if kind not in (known := figure.canvas.get_supported_filetypes()):
        raise ValueError(f"{out}: no figure can be written as .{kind}, choose from {sorted(known)}")
    with paths.write_beside(out) as beside:
        figure.savefig(beside, dpi=160, format=kind)


def compare(options) -> None:
    """Print the verdict; write the table where one is asked for."""
    from mindeye2_lite import nsd_compare, paths

    if options.out and options.out.suffix != ".csv":
        raise ValueError(f"--out {options.out}: give the name of a .csv file")
    found = nsd_compare.compare(options.ours, options.released, options.subject)
    if options.out:
        with paths.write_beside(options.out) as beside:
            found.table().to_csv(beside, index=False)
    print(found)


def miniatures(options) -> None:
    """Train the named miniatures, measure all, or list the names."""
    from mindeye2_lite import training_miniatures as training

    known = training.recipes()
    if unknown := [name for name in options.names if name not in known]:
        raise ValueError(f"no miniature {unknown[0]!r}: choose from {', '.join(known)}")
    for name in options.names:
        training.train(name, steps=options.steps, device=options.device, seed=options.seed)
    if options.measure:
        print(training.write_measure(seed=options.seed, device=options.device or "cpu"))
    if not options.names and not options.measure:
        print("\n".join(known))


def results(options) -> None:
    """Run the experiment and say where its numbers are."""
    from mindeye2_lite import experiments

    if options.name not in experiments.EXPERIMENTS:
        known = ", ".join(experiments.EXPERIMENTS)
        raise ValueError(f"no results {options.name!r}: choose from {known}")
    config = Config.of(options.profile)
    how = {"seeds": options.seeds, "jobs": options.jobs}
    if options.pictures:
        how["pictures"] = True
    try:
        inspect.signature(experiment := experiments.EXPERIMENTS[options.name]).bind(config, **how)
    except TypeError as error:
        raise ValueError(f"results {options.name} cannot do that: {error}") from error
    content = experiment(config, **how)
    print(experiments.write(options.name, content))


def sweep(options) -> int:
    """Compute what is missing and say how much is there; status 130 after Ctrl-C."""
    from mindeye2_lite import sweeps

    config = Config.of(options.profile)
    if min(options.seeds, 1 if options.limit_cells is None else options.limit_cells) < 1:
        raise ValueError("--seeds and --limit-cells must be 1 or more")
    how = {"seeds": range(options.seeds), "subjects": options.subjects, "fresh": options.fresh}
    how |= {"executor": options.executor, "limit": options.limit_cells}
    if options.name is None:
        print(sweeps.listing(config, how["seeds"]))
        return 0
    if options.name == "small-points":
        from mindeye2_lite import small_points

        print(small_points.run(how["seeds"], executor=options.executor))
        return 0
    try:
        for name in sweeps.names(options.name):
            print(sweeps.run(name, config, **how))
    except KeyboardInterrupt:
        print("stopped: what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def bench(options) -> None:
    """Print what was measured; at full size also keep it in results/."""
    from mindeye2_lite import benchmarks

    if options.name is None:
        for name, benchmark in benchmarks.BENCHMARKS.items():
            print(f"{name:8s} {benchmark.__doc__.partition('.')[0]}")
        return
    size = _size_of_bench(options)
    how = {"seed": options.seed, "keep": options.keep}
    content = benchmarks.run(options.name, options.folder, size, **how)
    print(benchmarks.table(content))
    if size == type(size)():
        from mindeye2_lite import experiments

        print(experiments.write(f"bench_{options.name}", content))


def _size_of_bench(options):
    """The size that was asked for. ValueError for one too small, or of another benchmark's."""
    from mindeye2_lite.benchmarks import SIZES, Size

    kind, least = (
        SIZES.get(options.name, Size),
        {"sessions": 2, "trials": 1, "voxels": 1, "pairs": 2},
    )
    given = {name: value for name in least if (value := getattr(options, name)) is not None}
    fields = [name for name in least if name in kind.__dataclass_fields__]
    for name, value in given.items():
        if name not in fields:
            takes = ", ".join(f"--{field}" for field in fields)
            raise ValueError(f"bench {options.name} has no --{name}: its size is set by {takes}")
        if value < least[name]:
            raise ValueError(f"--{name} must be {least[name]} or more, got {value}")
    return kind(**given)


def fetch(options) -> None:
    """List what there is, or get what a profile needs and say where it lies."""
    from mindeye2_lite import assets, paths

    if not options.profile:
        print(assets.listing(assets.table()))
        return
    chosen = assets.needed(
        Config.of(options.profile),
        options.subjects,
        sessions=options.sessions,
        stages=options.stages or assets.USED,
    )
    if not chosen:
        print(f"{options.profile} needs nothing from outside")
    elif options.list:
        print(assets.listing(chosen))
    else:
        assets.fetch(chosen, accept_nsd_terms=options.accept_nsd_terms)
        print(f"all there: set MINDEYE2_LITE_DATA={paths.assets()} to train and test on these")


def plan(options) -> None:
    """Print parameters, memory, disk, and which switches make it fit."""
    from mindeye2_lite import plan as planning

    print(
        planning.report(
            planning.plan(
                Config.of(options.profile),
                gpu_gb=options.gpu_gb,
                sessions=options.sessions,
                subject=options.subject,
                pretrain=options.pretrain,
            )
        )
    )


def train(options) -> None:
    """Train one model and say where it is; a run that was stopped goes on."""
    from dataclasses import replace

    from mindeye2_lite import paths, synthetic
    from mindeye2_lite import train as training
    from mindeye2_lite.hardware import Hardware

    how = (options.precision, options.accumulate, options.checkpointing, options.eight_bit)
    hardware = Hardware(*how)
    config = Config.of(options.profile)
    config = replace(config, low_level=config.low_level and not options.no_low_level)
    config = replace(config, max_steps=options.max_steps or config.max_steps)
    root = options.data or synthetic.open_cohort(config)
    kind = "pretrained" if options.pretrain else f"sessions{options.sessions or 'all'}"
    name = f"{kind}-subject{options.subject}"
    folder = options.out or paths.runs(config.profile, "train", name)
    shared = {"folder": folder, "seed": options.seed, "hardware": hardware}
    shared["normalize"] = options.normalize
    if options.pretrain:
        others = tuple(s for s in range(1, 9) if s != options.subject)
        training.pretrain(config, root, others, **shared)
    else:
        sessions, start = options.sessions, options.start
        training.fine_tune(config, root, options.subject, sessions, start=start, **shared)
    print(folder)


def converter(options) -> None:
    """Train on all pictures of the file and say where the converter is."""
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out {options.out}: give the name of a .safetensors file")
    for name in ("epochs", "batch"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {value}")
    from mindeye2_lite import converter_training, nsd

    how = {"epochs": options.epochs, "batch": options.batch, "seed": options.seed}
    images, device = nsd.Images(options.images), _device(options.device)
    errors = converter_training.train_released(images, options.out, device=device, **how)
    print(f"{options.out}: squared error {errors[0]:.4g} at first, {errors[-1]:.4g} at last")


def _device(name: str | None) -> str:
    """The device of that name, or the best there is. ValueError where there is none."""
    import torch

    there = ["cpu", *["cuda"] * torch.cuda.is_available()]
    if name is not None and name.partition(":")[0] not in there:
        raise ValueError(f"--device {name} is not available here: choose {' or '.join(there)}")
    return name or there[-1]


def book(options) -> int:
    """Run what is not fresh and build the book."""
    from mindeye2_lite import book

    root = book.find_root()
    book.execute_all(root)
    return book.build(root)


def picture(options) -> None:
    """The first eight test pictures of subject 1 after forty sessions, with their captions."""
    import matplotlib

    matplotlib.use("agg")
    from mindeye2_lite import book, paths, pipeline, viz

    viz.use_style()
    made = pipeline.run(Config.lite(), subject=1, sessions=None, images=8)
    note = "synthetic cohort, miniature model; the first eight of the test split, 40 sessions"
    figure = viz.reconstruction_grid(dict(made.pictures()), captions=made.captions, note=note)
    with paths.write_beside(book.find_root() / "book" / "images" / "tour.png") as beside:
        figure.savefig(beside, dpi=160, format="png")


def student(options) -> None:
    """Write the copies and list them."""
    from mindeye2_lite import book

    for path in book.student_copies(book.find_root()):
        print(path)


def weights(options) -> int:
    """List what is shipped; status 1 if a file is missing or is not the one that was shipped."""
    from mindeye2_lite import doctor

    lines = doctor.check_weights()
    for line in lines:
        print(f"{line.state:8s} {line.megabytes:6.1f} MB  {line.name}  {line.sha256[:12]}")
    return int(any(line.state != "ok" for line in lines))


def doctor(options) -> None:
    """Print the report that an issue should carry."""
    from mindeye2_lite import doctor

    for name, value in doctor.report().items():
        print(f"{name:16s} {value}")


if __name__ == "__main__":
    sys.exit(main())
