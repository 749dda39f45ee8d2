"""The command that serves models over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.pipelines.commands.options import _model_cards, _pipeline_files, user_errors

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@user_errors
def serve(
    cards: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CARD…",
            help="Model cards to load; of each task the first is the default.",
            autocompletion=_model_cards,
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A pipeline whose steps answer /v1/run.", autocompletion=_pipeline_files),
    ] = None,
    ontology: Annotated[
        str | None, typer.Option(metavar="FILE", help="Classes to look for where a request names none.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", metavar="RUN", help="A run that /v1/search looks into. Repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for everybody.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 9001,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", metavar="KEY", envvar="LABELMILL_SERVE_KEYS", help="Only for who shows such a key. Repeatable."
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images that requests name by URL, from public addresses.")
    ] = False,
    only_named: Annotated[bool, typer.Option("--only-named", help="Load no card that is not named here.")] = False,
    keep: Annotated[int, typer.Option(min=1, help="Models kept loaded; the least recently used go.")] = 8,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", help="What the models may need together, by their cards.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per call of a model; each operator's own if not given.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=10_000, metavar="MS", help="A batch waits so long for what is on its way.")
    ] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads that decode and prepare images.")] = 2,
    compute_threads: Annotated[
        int, typer.Option(min=1, help="Threads that a model computes with on a CPU. One is what a run has.")
    ] = 1,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait; beyond it: 503.")] = 256,
    queue_mb: Annotated[
        int, typer.Option(min=1, help="MB of requests and pixels held at once; beyond it: 503.")
    ] = 1024,
    max_body_mb: Annotated[int, typer.Option(min=1, help="MB of one request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one image.")] = 100_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is given up.")] = 60,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log no line for each request.")] = False,
) -> None:
    """Serve models over HTTP, batched across requests.

    Answers what Roboflow Inference's client and the OpenAI client ask, and routes of its own: /docs lists them. Needs
    `pip install 'labelmill[serve]'`.
    """
    from importlib.util import find_spec

    from labelmill.pipelines.errors import UserError

    missing = [
        name for name in ("fastapi", "uvicorn", "prometheus_client", "python_multipart") if find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"labelmill serve needs {', '.join(missing)}, which is not installed; run "
            "`pip install --editable '.[serve]'` in labelmill's folder"
        )
    from labelmill.operators.images.decoded import MAX_PIXELS
    from labelmill.pipelines.config.pipeline import load_pipeline
    from labelmill.pipelines.engine.work import use_threads
    from labelmill.pipelines.serve.app import create_app
    from labelmill.pipelines.serve.listen import listen
    from labelmill.pipelines.serve.ontologies import read_ontology
    from labelmill.pipelines.serve.settings import MEGABYTE, Settings

    keys = tuple(word for given in key or [] for word in given.split() if word)
    if host not in LOOPBACK and not keys:
        typer.secho(f"warning: anybody who reaches {host}:{port} may use this server; --key keeps others out", err=True)
    settings = Settings(
        cards=tuple(cards or ()),
        pipeline=pipeline,
        ontology=ontology,
        runs=tuple(run or ()),
        keep=keep,
        memory_gb=memory,
        batch=batch,
        wait=wait / 1000,
        threads=threads,
        queue=queue,
        queue_bytes=queue_mb * MEGABYTE,
        max_body=max_body_mb * MEGABYTE,
        max_pixels=min(max_pixels, MAX_PIXELS),
        timeout=timeout,
        keys=keys,
        allow_urls=allow_urls,
        cards_on_demand=not only_named,
    )
    use_threads(compute_threads)
    classes = read_ontology(ontology) if ontology is not None else None
    app = create_app(settings, classes, load_pipeline(pipeline) if pipeline is not None else None)
    typer.echo(f"http://{host}:{port} (/docs lists what can be asked; Ctrl-C stops)", err=True)
    # A stop waits as long as any request that was taken may still take.
    listen(app, host, port, settings.timeout + 5, quiet)
