"""The Gradio page: the user drops a picture and gets its classes and the heat over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default
from gradio.utils import get_upload_folder

from keras_vgg.data.decode import EXTENSIONS, MAX_UPLOAD_PIXELS
from keras_vgg.demo.answer import Answer, Answerer, Examples, TimeLimit
from keras_vgg.demo.guard import require_upload
from keras_vgg.run import Run, validation_text

# Gradio checks its temporary files every _CLEANING_INTERVAL seconds, and deletes those that are
# older than _MAX_AGE seconds.
_CLEANING_INTERVAL, _MAX_AGE = 60, 300
_QUEUE_SIZE = 16  # pictures; more users are asked to try again later
_SMALL_SHARE = 0.25  # A recipe without eval_scale sees less of a large picture: the page says so.
_MAX_PNG_PIXELS = 512 * 512  # Larger heat is a JPEG: a PNG of a photograph takes seconds.

_STYLE = """
.gradio-container {width: 100% !important; max-width: 1100px !important;
  margin: 0 auto !important;}
.vgg .html-container {padding: 0;}
.vgg h1, .vgg h2, .vgg p {overflow-wrap: anywhere;}
.vgg h2 {font-size: 1.1em; margin: 0;}
.vgg-answer table {width: 100%; border: 0; border-collapse: collapse; table-layout: fixed;}
.vgg-answer caption {text-align: left; padding-bottom: 6px; overflow-wrap: anywhere;}
.vgg-answer tr {border: 0;}
.vgg-answer :is(th, td) {text-align: left; padding: 5px 0; font-weight: normal; border: 0;
  border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere;}
.vgg-answer tbody tr.best :is(th, td) {font-weight: 600;}
.vgg-answer :is(th, td).number {text-align: right; font-variant-numeric: tabular-nums;}
.vgg-answer .bar {display: block; height: 6px; border-radius: 3px; margin-top: 3px;
  min-width: 1px; background: var(--color-accent);}
.vgg-answer [role=alert] {padding: 10px 12px; border-radius: 6px; overflow-wrap: anywhere;
  border: 1px solid var(--error-border-color); color: var(--error-text-color);
  background: var(--error-background-fill);}
.vgg-examples .grid-wrap {height: auto; min-height: 0; max-height: none; padding: 0;}
.vgg-examples .grid-container {padding-top: 0;}
.vgg-heat img {width: 100%; min-height: 240px; object-fit: contain;}
@media (max-width: 640px) {.vgg-examples .grid-container {--grid-cols: 3 !important;}}
"""
_THEME = Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace"])

_UPLOAD_TEXT = "<p>JPEG, PNG, BMP, GIF or WebP, at most {} MB and {} megapixels</p>"
_HEAT_TEXT = (
    "<p>Grad-CAM: bright places speak for the first class. The network did not see grey places</p>"
)

# The look of the page, as arguments for `gradio.mount_gradio_app`.
LOOKS: dict[str, Any] = {"theme": _THEME, "css": _STYLE, "footer_links": []}


async def _move_upload(
    move: Callable[[str], Awaitable[str | None]], largest: int, path: str
) -> str | None:
    """Let Gradio move a file into its cache if it is an upload.

    Gradio itself would also fetch an address, and copy any file of this machine.
    """
    try:
        require_upload(path, _upload_folder(), largest)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    return await move(path)


def _upload_folder() -> Path:
    return Path(get_upload_folder())


def demo_page(
    run: Run, answerer: Answerer, examples: Examples, max_mb: int, limit: TimeLimit
) -> gr.Blocks:
    """Return the page of a finished run, for `gradio.mount_gradio_app`.

    Args:
        run: The run, whose recipe and results the page shows.
        answerer: The run's network.
        examples: Images to try. If there are none, the page does not mention them.
        max_mb: Size of the largest upload, in units of 2^20 bytes.
        limit: The time limit of an answer.
    """
    largest = max_mb * 2**20

    def of_file(path: str | None):
        if path is None:
            return None, None, ""

        def answer() -> Answer:
            return limit.ask(
                lambda: answerer.of_file(require_upload(path, _upload_folder(), largest))
            )

        return None, *_heat_and_table(Path(path).name, answer, path)

    def of_example(selected: gr.SelectData):
        return _heat_and_table(
            f"example {selected.index + 1}",
            lambda: limit.ask(lambda: answerer.of_image(examples[selected.index])),
        )

    title = f"VGG, configuration {run.recipe.configuration}: {run.directory.resolve().name}"
    cleaning = (_CLEANING_INTERVAL, _MAX_AGE)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=cleaning) as blocks:
        gr.HTML(_about(run, title, answerer.notes), elem_classes="vgg")
        with gr.Row():
            with gr.Column(min_width=280):
                upload_text = _UPLOAD_TEXT.format(max_mb, MAX_UPLOAD_PIXELS // 10**6)
                gr.HTML(f"<h2>A picture</h2>{upload_text}", elem_classes="vgg")
                upload = gr.File(
                    label="A picture",
                    show_label=False,
                    file_types=["image", *EXTENSIONS],
                    height=180,
                )
                move = upload.async_move_resource_to_block_cache
                # Gradio has no setting for this, so the method is replaced.
                upload.async_move_resource_to_block_cache = partial(  # pyright: ignore[reportAttributeAccessIssue]
                    _move_upload, move, largest
                )
                answer = gr.HTML("", elem_classes="vgg vgg-answer")
            with gr.Column(min_width=280):
                gr.HTML(f"<h2>Why</h2>{_HEAT_TEXT}", elem_classes="vgg")
                heat = gr.Image(
                    label="Grad-CAM",
                    show_label=False,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes="vgg-heat",
                )
        thumbnails = _gallery(examples)
        # One picture at a time: the largest ones take half a gigabyte.
        one = {"concurrency_limit": 1, "concurrency_id": "network", "trigger_mode": "once"}
        upload.upload(of_file, upload, [upload, heat, answer], api_name="classify", **one)
        thumbnails.select(of_example, None, [heat, answer], api_visibility="private", **one)
    return blocks.queue(max_size=_QUEUE_SIZE, api_open=False)


def _gallery(examples: Examples) -> gr.Gallery:
    """Put the examples on the page; without examples, title and gallery are hidden.

    `gradio.Examples` would read the file of each example, and so copy the images to the disk.
    """
    visible = bool(examples.thumbnails)
    gr.HTML("<h2>Validation images to try</h2>", elem_classes="vgg", visible=visible)
    return gr.Gallery(
        examples.thumbnails,
        label="Validation images",
        show_label=False,
        format="png",
        columns=6,
        object_fit="contain",
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=visible,
        elem_classes="vgg-examples",
    )


def _heat_and_table(
    name: str, ask: Callable[[], Answer], path: str | None = None
) -> tuple[Any, str]:
    """Return the picture of the heat and the table of classes; on an error, None and a message."""
    try:
        answer = ask()
    except (ValueError, OSError, IndexError, MemoryError) as error:
        # The user knows the file's name, but not its path on this machine.
        message = str(error).removeprefix(f"{path}: ")
        return None, f'<p role="alert"><b>{escape(name)}</b>: {escape(message)}</p>'
    height, width = answer.heat.shape[:2]
    sides = f"{width} x {height} pixels"
    if answer.seen < _SMALL_SHARE:
        sides += f", of which the network saw the middle {answer.seen:.1%}"
    best = answer.classes[0][0]
    picture = gr.Image(
        answer.heat,
        format="png" if height * width <= _MAX_PNG_PIXELS else "jpeg",
        alt_text=f"{name} with bright places where it speaks for {best}",
    )
    return picture, _table(f"{name}, {sides}", answer)


def _table(caption: str, answer: Answer) -> str:
    """Return the classes in HTML; with several labels a picture, also which labels it has."""
    header = '<th scope="col">class</th><th scope="col" class="number">probability</th>'
    columns = '<col><col style="width:6em">'
    has_label = [number == 0 for number in range(len(answer.classes))]
    cells = [""] * len(answer.classes)
    if answer.thresholds is not None:
        header = header.replace("class<", "label<") + '<th scope="col" class="number">from</th>'
        columns += '<col style="width:6em">'
        pairs = [*zip(answer.classes, answer.thresholds, strict=True)]
        has_label = [share >= threshold for (_, share), threshold in pairs]
        cells = [f'<td class="number">{threshold:.2%}</td>' for _, threshold in pairs]
        labels = [label for (label, _), has in zip(answer.classes, has_label, strict=True) if has]
        caption += f"; {'labels: ' + ', '.join(labels) if labels else 'no label'}"
    rows = "".join(
        f'<tr{" class=best" if has else ""}><th scope="row">{escape(label)}'
        f'<span class="bar" style="width:{share:.2%}"></span></th>'
        f'<td class="number">{share:.2%}</td>{cell}</tr>'
        for (label, share), cell, has in zip(answer.classes, cells, has_label, strict=True)
    )
    return (
        f'<div role="status"><table><caption>{escape(caption)}</caption>'
        f"<colgroup>{columns}</colgroup><thead><tr>{header}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _about(run: Run, title: str, notes: Sequence[str]) -> str:
    source, results = run.recipe.without_folders().source, run.results
    facts = [f"Trained on {source}, {len(run.class_names)} classes"]
    facts.append(validation_text(results) if run.finished else "training has not finished")
    if "top1" in results.get("test", {}):
        facts.append(f"test accuracy {results['test']['top1']:.2%}")
    remarks = "".join(f"<p>{escape(note)}.</p>" for note in notes)
    privacy = "Pictures stay on the machine that serves this page, and are deleted after minutes."
    return f"<h1>{escape(title)}</h1><p>{escape(', '.join(facts))}.</p>{remarks}<p>{privacy}</p>"
