"""The page: a picture in, its classes and the heat over it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
from keras_vgg.run import Run

# Seconds: so often what was uploaded or drawn is looked at, and so old it is deleted.
_CLEANED, _KEPT = 60, 300
_WAITING = 16  # pictures in the queue; who comes then is told to try later
_LITTLE = 0.25  # of a picture: what recipes without eval_scale see of a large one
_LOSSLESS = 512 * 512  # pixels up to which the heat is a PNG; of a photograph that takes seconds

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
.vgg-answer tbody tr:first-child :is(th, td) {font-weight: 600;}
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

_TAKEN = "<p>JPEG, PNG, BMP, GIF or WebP, at most {} MB and {} megapixels</p>"
_DRAWN = "<p>Bright: what speaks for the first class (Grad-CAM). Grey: not seen</p>"

# What `gradio.mount_gradio_app` is given with the page.
LOOKS: dict[str, Any] = {"theme": _THEME, "css": _STYLE, "footer_links": []}


async def _uploaded(
    move: Callable[[str], Awaitable[str | None]], largest: int, path: str
) -> str | None:
    """Gradio's way of an upload to its folder, which would fetch an address and copy any file."""
    try:
        require_upload(path, _upload_folder(), largest)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    return await move(path)


def _upload_folder() -> Path:
    return Path(get_upload_folder())


def page(
    run: Run, answerer: Answerer, offered: Examples, max_mb: int, limit: TimeLimit
) -> gr.Blocks:
    """The page of a finished run, for `gradio.mount_gradio_app`.

    Args:
        run: Whose recipe and results are told.
        answerer: What is asked.
        offered: What there is to try; without any, the page says nothing of them.
        max_mb: How large a file may be, in units of 2^20 bytes.
        limit: Asks, for so long.
    """
    largest = max_mb * 2**20

    def of_file(path: str | None):
        if path is None:
            return None, None, ""

        def answer() -> Answer:
            return limit.ask(
                lambda: answerer.of_file(require_upload(path, _upload_folder(), largest))
            )

        return None, *_shown(Path(path).name, answer, path)

    def of_example(chosen: gr.SelectData):
        return _shown(
            f"example {chosen.index + 1}",
            lambda: limit.ask(lambda: answerer.of_image(offered[chosen.index])),
        )

    title = f"VGG, configuration {run.recipe.configuration}: {run.directory.resolve().name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_CLEANED, _KEPT)) as blocks:
        gr.HTML(_about(run, title), elem_classes="vgg")
        with gr.Row():
            with gr.Column(min_width=280):
                taken = _TAKEN.format(max_mb, MAX_UPLOAD_PIXELS // 10**6)
                gr.HTML(f"<h2>A picture</h2>{taken}", elem_classes="vgg")
                upload = gr.File(
                    label="A picture",
                    show_label=False,
                    file_types=["image", *EXTENSIONS],
                    height=180,
                )
                move = upload.async_move_resource_to_block_cache
                # Gradio offers no way but to replace the method.
                upload.async_move_resource_to_block_cache = partial(  # pyright: ignore[reportAttributeAccessIssue]
                    _uploaded, move, largest
                )
                answer = gr.HTML("", elem_classes="vgg vgg-answer")
            with gr.Column(min_width=280):
                gr.HTML(f"<h2>Why</h2>{_DRAWN}", elem_classes="vgg")
                heat = gr.Image(
                    label="Grad-CAM",
                    show_label=False,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes="vgg-heat",
                )
        thumbnails = _gallery(offered)
        # One picture at a time: the largest take half a gigabyte.
        one = {"concurrency_limit": 1, "concurrency_id": "network", "trigger_mode": "once"}
        upload.upload(of_file, upload, [upload, heat, answer], api_name="classify", **one)
        thumbnails.select(of_example, None, [heat, answer], api_visibility="private", **one)
    return blocks.queue(max_size=_WAITING, api_open=False)


def _gallery(offered: Examples) -> gr.Gallery:
    """Put the examples on the page; without any, it says nothing of them."""
    some = bool(offered.thumbnails)
    gr.HTML("<h2>Validation images to try</h2>", elem_classes="vgg", visible=some)
    return gr.Gallery(
        offered.thumbnails,
        label="Validation images",
        show_label=False,
        format="png",
        columns=6,
        object_fit="contain",
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=some,
        elem_classes="vgg-examples",
    )


def _shown(name: str, answer: Callable[[], Answer], path: str | None = None) -> tuple[Any, str]:
    """The picture of the heat and the table, or no picture and what is wrong."""
    try:
        found = answer()
    except (ValueError, OSError, IndexError) as error:
        # The user knows the file by its name, not by where it lies here.
        said = str(error).removeprefix(f"{path}: ")
        return None, f'<p role="alert"><b>{escape(name)}</b>: {escape(said)}</p>'
    height, width = found.heat.shape[:2]
    sides = f"{width} x {height} pixels"
    if found.seen < _LITTLE:
        sides += f", of which the network saw the middle {found.seen:.1%}"
    best = found.classes[0][0]
    picture = gr.Image(
        found.heat,
        format="png" if height * width <= _LOSSLESS else "jpeg",
        alt_text=f"{name} with bright places where it speaks for {best}",
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}<span class="bar" style="width:{share:.2%}"></span>'
        f'</th><td class="number">{share:.2%}</td></tr>'
        for label, share in found.classes
    )
    return picture, (
        f'<div role="status"><table><caption>{escape(name)}, {sides}</caption>'
        '<colgroup><col><col style="width:6em"></colgroup>'
        '<thead><tr><th scope="col">class</th><th scope="col" class="number">probability</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _about(run: Run, title: str) -> str:
    recipe, results = run.recipe, run.results
    said = [f"Trained on {recipe.source}, {len(run.class_names)} classes"]
    said.append(f"validation accuracy {results['validation_accuracy']:.2%}")
    if "test" in results:
        said.append(f"test accuracy {results['test']['top1']:.2%}")
    kept = "Pictures stay on the machine that serves this page, and are deleted after minutes."
    return f"<h1>{escape(title)}</h1><p>{escape(', '.join(said))}.</p><p>{kept}</p>"
