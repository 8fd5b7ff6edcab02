"""The panels in a real JupyterLab, used as people use them."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from browser.conftest import Open
from browser.lab import TOKEN, Server, wait
from PIL import Image
from playwright.sync_api import Page, expect

from qwenvl_kit.demo import WORLD, draw, sample_scenes

ANSWER = "一个大的青色心形"
SLOW = "SamplingCompare(df, temperatures=[0.5, 1.0, 1.5], repeats=20, batch_size=1, **SETTINGS)"


def button(page: Page, name: str) -> Any:
    return page.locator(".qwenvl-panel").get_by_role("button", name=name, exact=True)


def status(page: Page) -> Any:
    return page.locator(".qwenvl-panel .qwenvl-status")


def upload(page: Page, name: str, data: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(".qwenvl-panel").get_by_role("button", name="Upload images").click()
    chooser.value.set_files([{"name": name, "mimeType": "application/octet-stream", "buffer": data}])


def run_cell(page: Page, at: int) -> None:
    """Run one cell and wait for its answer."""
    prompt = page.locator(".jp-CodeCell").nth(at).locator(".jp-InputPrompt")
    before = prompt.inner_text()
    page.evaluate(
        "at => { const panel = window.jupyterapp.shell.currentWidget; panel.content.activeCellIndex = at;"
        " return window.jupyterapp.commands.execute('notebook:run-cell'); }",
        at,
    )
    expect(prompt).not_to_have_text(before)
    expect(prompt).to_have_text(re.compile(r"\[\d+\]"))


def output(page: Page, at: int) -> Any:
    return page.locator(".jp-CodeCell").nth(at).locator(".jp-OutputArea-output").last


def test_run_shows_an_answer_beside_every_picture(notebook: Open) -> None:
    page = notebook("panel = Playground(df, **SETTINGS, resized_height=112)\npanel")
    button(page, "Run").click()

    expect(status(page)).to_contain_text("Done: 4 of 4 answers")
    expect(page.locator(".qwenvl-panel")).to_contain_text(ANSWER)
    assert page.locator(".qwenvl-panel img").evaluate_all("all => all.filter(one => !one.alt).length") == 0
    expect(button(page, "Run")).to_be_enabled()
    expect(button(page, "Cancel")).to_be_disabled()


def test_cancel_stops_a_slow_run_while_another_cell_answers(notebook: Open) -> None:
    page = notebook(f"panel = {SLOW}\npanel", "6 * 7", "len(panel.to_frame())")
    button(page, "Run").click()
    expect(status(page)).to_contain_text(re.compile(r"[1-9]\d* of 240 answers"))
    expect(status(page)).to_contain_text("left")

    run_cell(page, 2)
    expect(output(page, 2)).to_have_text("42")
    expect(button(page, "Cancel")).to_be_enabled()  # the run goes on
    button(page, "Cancel").click()
    expect(status(page)).to_contain_text("Finished answers are kept")
    run_cell(page, 3)
    assert 0 < int(output(page, 3).inner_text()) < 240


def test_an_uploaded_picture_is_looked_at_and_one_that_is_none_is_refused(notebook: Open) -> None:
    file = io.BytesIO()
    Image.fromarray(draw(sample_scenes(1, seed=9, world=WORLD)[0])).save(file, "PNG")
    page = notebook("panel = Playground(**SETTINGS, resized_height=112)\npanel")
    upload(page, "<b>notes.txt", b"no picture at all")
    expect(status(page)).to_contain_text("<b>notes.txt was not added: decode:")

    upload(page, "scene.png", file.getvalue())
    expect(status(page)).to_contain_text("Added scene.png")
    button(page, "Run").click()
    expect(status(page)).to_contain_text("Done: 1 of 1 answers")
    expect(page.locator(".qwenvl-panel table")).to_contain_text("背景上有")


def test_the_slider_divides_the_two_sizes_by_mouse_and_by_keys(notebook: Open) -> None:
    page = notebook("panel = ResizeCompare(df, heights=[112, 56], **SETTINGS)\npanel", "panel.slider.position")
    button(page, "Run").click()
    stage = page.locator(".qwenvl-before-after .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    slider = page.get_by_role("slider", name="Divide")
    expect(slider).to_have_value("80")
    slider.press("ArrowLeft")
    expect(slider).to_have_value("79")
    for _ in range(20):  # the front end sends the last of many moves once those before are dealt with
        run_cell(page, 2)
        if output(page, 2).inner_text() == "79":
            break
    expect(output(page, 2)).to_have_text("79")

    grid = page.locator(".qwenvl-token-grid")
    expect(grid).to_contain_text("4 × 3 = 12 visual tokens; row 1, column 1")
    grid.locator(".stage").press("ArrowDown")
    expect(grid).to_contain_text("row 2, column 1")


def unescaped(css: str) -> str:
    """Text of a string in CSS, where a token's quotes and line breaks are escaped."""
    return re.sub(r"\\(?:([0-9a-f]{1,6}) ?|(.))", lambda found: found[2] or chr(int(found[1], 16)), css)


def test_a_doubtful_token_takes_the_focus_and_shows_what_else_was_likely(notebook: Open) -> None:
    page = notebook("panel = Playground(df, prompt='Describe the noise.', logprobs=3, **SETTINGS)\npanel")
    button(page, "Run").click()
    expect(status(page)).to_contain_text("Done: 4 of 4 answers")

    token = page.locator(".qwenvl-panel .token[tabindex]").first
    token.focus()
    shown = token.evaluate("one => getComputedStyle(one, '::after').content")
    assert unescaped(shown[1:-1]) == token.get_attribute("title")
    assert "%" in shown
    token.press("Tab")  # to the next one, or to the table of all
    assert page.evaluate("document.activeElement.matches('.qwenvl-panel .token, .qwenvl-panel summary')")
    page.locator(".qwenvl-panel summary").first.press("Enter")
    expect(page.locator(".qwenvl-panel details[open] th").first).to_have_text("token")


def test_scripts_in_prompts_do_not_run(notebook: Open) -> None:
    page = notebook(
        "panel = Playground(df, backend='echo', prompt='<img src=x onerror=\"window.broken=1\"> <b>what</b>?')\npanel"
    )
    button(page, "Run").click()

    expect(page.locator(".qwenvl-panel table").first).to_contain_text("<b>what</b>?")
    assert page.evaluate("window.broken") is None


def test_a_restart_in_mid_run_is_told_and_the_cell_can_be_run_again(notebook: Open, server: Server) -> None:
    page = notebook(f"panel = {SLOW}\npanel")
    button(page, "Run").click()
    expect(status(page)).to_contain_text(re.compile(r"[1-9]\d* of 240 answers"))
    gone = page.locator(".qwenvl-gone")
    expect(gone).to_be_hidden()
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    expect(gone).to_be_visible()
    expect(gone).to_contain_text("Run its cell again")

    wait(lambda: server.ask("kernels")[0]["execution_state"] == "idle" or None, "the kernel's return")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    expect(page.locator(".qwenvl-gone")).to_be_hidden()
    expect(button(page, "Run")).to_be_enabled()


def test_the_saved_notebook_shows_its_results_without_a_kernel(notebook: Open, server: Server, page: Page) -> None:
    notebook("panel = DtypeCompare(df, **SETTINGS, resized_height=112)\npanel", name="saved.ipynb")
    button(page, "Run").click()
    expect(status(page)).to_contain_text("Done:")
    expect(page.locator(".qwenvl-saved")).to_be_hidden()  # while the panel itself is there
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    file = server.folder / "saved.ipynb"
    saved = wait(lambda: file.read_text() if "qwenvl-saved" in file.read_text() else None, "the saved file")

    assert len(saved) < 1_000_000
    html = "".join(
        "".join(shown.get("data", {}).get("text/html", ""))
        for cell in json.loads(saved)["cells"]
        for shown in cell.get("outputs", [])
    )
    assert ANSWER in html
    assert "equal to dtype float32" in html

    server.stop_kernels()
    page.goto(f"{server.url}/lab/workspaces/reader/tree/saved.ipynb?token={TOKEN}")
    expect(page.locator(".qwenvl-saved")).to_be_visible()
    expect(page.locator(".qwenvl-saved")).to_contain_text(ANSWER)


def test_a_file_larger_than_a_message_arrives(notebook: Open) -> None:
    file = io.BytesIO()
    Image.effect_noise((3600, 3400), 90).save(file, "PNG")
    assert len(file.getvalue()) > 10 * 2**20
    page = notebook("panel = Playground(**SETTINGS)\npanel", "len(panel.state.images[0].cell)")
    upload(page, "large.png", file.getvalue())
    expect(status(page)).to_contain_text("Added large.png")
    run_cell(page, 2)
    expect(output(page, 2)).to_have_text(str(len(file.getvalue())))


def test_the_keyboard_alone_sets_runs_and_opens_the_code(notebook: Open) -> None:
    page = notebook("panel = Playground(df, **SETTINGS, resized_height=112)\npanel")
    run = button(page, "Run")
    run.focus()
    run.press("Enter")
    expect(status(page)).to_contain_text("Done: 4 of 4 answers")
    expect(run).to_be_focused()  # it went to Cancel meanwhile, which is disabled now
    expect(page.locator(".qwenvl-panel [role=status][aria-live]")).to_have_text(re.compile("^Done: 4 of 4 answers"))

    for name in ("Parameters", "Code that does the same"):
        page.keyboard.press("Tab")
        header = page.get_by_role("button", name=name)
        expect(header).to_be_focused()
        expect(header).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Code that does the same")).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("textbox", name="Code")).to_have_value(re.compile("panel_answers = panel_images.vl.run"))


def test_a_cell_that_is_run_again_ends_the_run_that_nobody_sees(notebook: Open) -> None:
    page = notebook(f"panel = {SLOW}\npanel", "import threading; [t.name for t in threading.enumerate()]")
    button(page, "Run").click()
    expect(status(page)).to_contain_text(re.compile(r"[1-9]\d* of 240 answers"))
    run_cell(page, 1)
    expect(button(page, "Run")).to_be_enabled()
    button(page, "Run").click()
    expect(status(page)).to_contain_text(re.compile(r"[1-9]\d* of 240 answers"))
    run_cell(page, 2)
    assert output(page, 2).inner_text().count("qwenvl_kit-panel") == 1
    button(page, "Cancel").click()
    expect(status(page)).to_contain_text("Finished answers are kept")


def test_controls_look_like_what_they_are_and_explain_themselves(notebook: Open) -> None:
    page = notebook("panel = Playground(df, **SETTINGS, resized_height=112)\npanel")
    page.get_by_role("button", name="Parameters").click()
    arrow = page.locator(".qwenvl-panel select").first.evaluate("one => getComputedStyle(one).backgroundImage")
    assert arrow != "none", "a drop-down has its arrow"
    helps = page.locator(".qwenvl-panel label span[title]")
    assert helps.count() >= 15
    button(page, "Run").click()
    expect(status(page)).to_contain_text("Done:")
    aligned = page.locator(".qwenvl-panel td").first.evaluate("one => getComputedStyle(one).textAlign")
    assert aligned == "left"


def test_a_judge_decides_by_keys_that_jupyterlab_does_not_see(notebook: Open) -> None:
    page = notebook(
        "from qwenvl_kit.widgets import Judge\n"
        "found = df.vl.compare('image', vary={'prompt': ['What?', 'Why?']}, backend='echo', progress=False)\n"
        "judge = Judge(found)\njudge",
        "judge.to_frame()['verdict'].tolist()",
    )
    panel = page.locator(".qwenvl-judge")
    expect(panel.locator("img")).to_be_visible()
    panel.focus()
    for at, key in enumerate(("1", "3", "z", "2", " "), start=1):
        page.keyboard.press(key)
        expect(panel.get_by_role("status")).to_contain_text(f"{at if at < 3 else at - 2} of 4 pairs judged")
    assert page.locator(".jp-MarkdownCell").count() == 0, "1 and 2 make headings in JupyterLab's command mode"
    run_cell(page, 2)
    verdicts = output(page, 2).inner_text()
    assert verdicts.count("skip") == 1
    assert len(re.findall("reference|other", verdicts)) == 2
