"""The page of a report: its numbers are those of the files, everything is escaped, its script runs."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from support.fake_detector import RECIPE

from kgarden import cli
from kgarden.commands.report_charts import HEIGHT, WIDTH, Line, chart
from kgarden.metrics.report import score
from kgarden.metrics.tables import label_of

pytestmark = pytest.mark.tensorflow
CATEGORIES = [{"id": 3, "name": "<b>bold</b>"}, {"id": 7, "name": '</script><img src=x> & "q"'}]
BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium")


def truth_and_results(seed):
    """Six images of 96x64 px with two objects each; detections near them, some of another class."""
    rows = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(6):
        for n in range(2):
            box = [int(rows.integers(0, 20)) + 48 * n, int(rows.integers(0, 20)), 24, 24]
            one = {"image_id": image, "category_id": (3, 7)[n], "bbox": box}
            annotations.append({**one, "id": len(annotations) + 1, "area": 576, "iscrowd": 0})
            moved = [box[0] + int(rows.integers(0, 12)), *box[1:]]
            category = int(rows.choice([3, 7]))
            found = {**one, "bbox": moved, "category_id": category, "score": round(float(rows.random()), 4)}
            results.append(found)
    images = [{"id": n, "file_name": f"{n}.png", "width": 96, "height": 64} for n in range(6)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, results


def make_run(world, name, seed=0):
    """A run directory as a training leaves it, without weights."""
    folder = world / name
    (folder / "evaluation").mkdir(parents=True)
    truth, _ = truth_and_results(0)
    _, results = truth_and_results(0) if seed == 0 else (None, truth_and_results(seed)[1])
    (world / "truth.json").write_text(json.dumps(truth))
    (world / "images").mkdir(exist_ok=True)
    for one in truth["images"]:
        Image.new("RGB", (96, 64), (40 * one["id"], 90, 90)).save(world / "images" / one["file_name"])
    source = f"{{format: coco, images: {world}/images, annotations: {world}/truth.json}}"
    text = RECIPE.replace("train: none", f"train: {source}").replace("val: none", f"val: {source}")
    (folder / "recipe.yaml").write_text(text)
    evaluation, analysis = score(truth, results)
    evaluation |= {"recipe": "standin", "step": 40, "train_s": 12}
    reports = [
        {"step": n, "loss": 2.0 / n, "head/class": 1.0 / n, "lr": 0.1, "traces": 1} for n in (1, 20, 40)
    ]
    reports.append({"step": 40, **{f"val/{key}": value for key, value in evaluation["metrics"].items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in reports))
    for file, content in (
        ("evaluation.json", evaluation),
        ("evaluation/analysis.json", analysis),
        ("detections.json", results),
        ("labels.json", CATEGORIES),
    ):
        (folder / file).write_text(json.dumps(content))
    return folder, evaluation, analysis


class Page(html.parser.HTMLParser):
    """Tables as lists of rows of texts, and all tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.cell, self.scripts, self.in_script = [], [], None, [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "script":
            self.in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None
        elif tag == "script":
            self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] += data
        elif self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two runs with the same validation data, and the page of both."""
    world = tmp_path_factory.mktemp("report")
    runs = [make_run(world, "one"), make_run(world, "two", seed=5)]
    page = world / "page.html"
    assert cli.main(["report", *(str(run[0]) for run in runs), "--to", str(page), "--images", "4"]) == 0
    return world, runs, page


def shown(value, digits=1):
    return "–" if value is None else f"{value:.{digits}f}"


def test_all_numbers_are_those_of_the_files(world):
    _, runs, file = world
    page = Page(file.read_text())
    _, metrics, first, second, errors, confusion, other = page.tables
    assert metrics[0][1:] == [label_of(name) for name in runs[0][1]["metrics"]]
    for (folder, evaluation, analysis), row, classes, kinds, matrix in zip(
        runs, metrics[1:], (first, second), errors[2:], (confusion, other), strict=True
    ):
        assert row == [str(folder), *map(shown, evaluation["metrics"].values())]
        for one, wrong, line in zip(evaluation["per_class"], analysis["per_class"], classes[1:], strict=True):
            best = wrong["best_f1"]
            assert line == [
                one["name"],
                str(one["objects"]),
                shown(one["ap"]),
                shown(one["ap50"]),
                shown(best["score"], 3),
                *(shown(best[key]) for key in ("f1", "precision", "recall")),
                *map(str, wrong["errors"].values()),
            ]
        given = [
            text for one in evaluation["errors"].values() for text in (str(one["count"]), shown(one["dap"]))
        ]
        assert kinds[1:] == given
        counts = {(row, column): count for row, column, count in analysis["confusion"]["cells"]}
        ids = [3, 7, None]
        assert [line[1:] for line in matrix[1:]] == [[str(counts.get((a, b), 0)) for b in ids] for a in ids]
        assert matrix[0][1:] == [*(one["name"] for one in CATEGORIES), "background"]
    exact = [attributes["data-value"] for tag, attributes in page.tags if "data-value" in attributes]
    assert str(runs[1][1]["metrics"]["ap"]) in exact


def test_the_page_is_escaped_and_needs_no_network(world):
    _, _, file = world
    text = file.read_text()
    page = Page(text)
    assert "<b>bold" not in text
    assert not [tag for tag, _ in page.tags if tag in ("b", "img", "link", "iframe")]
    assert len(page.scripts) == 2  # the name of a class ends neither
    addresses = [value for _, one in page.tags for key, value in one.items() if key in ("src", "href")]
    assert not addresses and "://" not in text.replace("http://www.w3.org/2000/svg", "")
    data = json.loads(page.scripts[0])
    assert [one["name"] for one in data["classes"]] == [one["name"] for one in CATEGORIES]
    assert len(data["photos"]) == 4 and all(
        one["jpeg"].startswith("data:image/jpeg") for one in data["photos"]
    )


def test_the_worst_photos_are_shown(world):
    _, runs, file = world
    photos = json.loads(Page(file.read_text()).scripts[0])["photos"]
    thresholds = [run[1]["thresholds"]["all"]["score"] for run in runs]

    def wrong(photo):
        total = 0
        for run, least in zip(photo["runs"], thresholds, strict=True):
            total += sum(one[5] >= least and one[6] != "right" for one in run["detections"])
            total += sum(score is None or score < least for score in run["found"])
        return total

    assert [wrong(one) for one in photos] == sorted(map(wrong, photos), reverse=True)
    assert all(one["width"] == 96 and len(one["objects"]) == 2 for one in photos)


def test_refusals_are_one_line(world, tmp_path, capsys):
    folder, runs, page = world
    mine = tmp_path / "mine.html"
    mine.write_text("<html>mine</html>")
    run = str(runs[0][0])
    assert cli.main(["report", run, "--to", str(mine)]) == 2 and "is not a report" in capsys.readouterr().err
    assert mine.read_text() == "<html>mine</html>"
    assert cli.main(["report", run, "--to", str(page), "--images", "4", run]) == 0  # a report is replaced
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "recipe.yaml").write_text((folder / "one/recipe.yaml").read_text())
    (fresh / "labels.json").write_text("[]")
    capsys.readouterr()
    assert cli.main(["report", str(fresh), "--to", str(tmp_path / "x.html")]) == 2
    assert "evaluation.json is missing; kgarden evaluate" in capsys.readouterr().err


def test_charts_by_hand():
    none = Line("b", [5], [None], "blue")
    made = chart("t", [Line("a", [0, 10], [0.0, 4.0], "red"), none, Line("c", [5], [1.0], "blue")])
    assert made.lines[0][:2] == ("a", f"0.0,{HEIGHT}.0 {WIDTH}.0,0.0")
    assert [one[0] for one in made.lines] == ["a", "c"]
    assert made.lines[1][1] == f"{WIDTH / 2:.1f},{HEIGHT * 3 / 4:.1f}"
    assert [label for _, label in made.y_ticks] == ["0", "1", "2", "3", "4"]
    assert chart("t", [none]) is None
    end = Line("end", [1000], [1.0], "blue")
    long = chart("t", [Line("a", list(range(1001)), [1.0] * 1001, "red"), end]).lines[0][1].split()
    assert len(long) <= 401 and long[-1].startswith(f"{WIDTH}.0,")


@pytest.mark.skipif(BROWSER is None, reason="no headless browser is installed")
def test_the_script_filters_and_sorts_in_a_browser(world):
    _, runs, file = world

    def photos(settings):
        address = f"{file.as_uri()}#{settings}"
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", address]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        cards = re.findall(r'<figure class="photo" data-id="(\d+)"[^>]*><figcaption>(.*?)</figcaption>', dom)
        return dom, {int(number): text for number, text in cards}

    dom, cards = photos("score=0")
    data = json.loads(Page(file.read_text()).scripts[0])
    assert len(cards) == 4 and "4 of 4 photos" in dom and "&lt;b&gt;bold&lt;/b&gt;" in dom
    for photo in data["photos"]:
        wrong = [
            sum(one[6] not in ("right", "ignored") for one in run["detections"]) for run in photo["runs"]
        ]
        lost = [run["found"].count(None) for run in photo["runs"]]
        counts = [a + b for a, b in zip(wrong, lost, strict=True)]
        assert cards[photo["id"]] == f"{photo['id']}.png: {counts[0]} and {counts[1]} mistakes"
    _, cards = photos("score=1")
    assert all(
        text.endswith("2 and 2 mistakes") for text in cards.values()
    )  # nothing is found, all is missed
    _, cards = photos("score=0&kind=class")
    verdicts = {}
    for photo in data["photos"]:
        verdicts[photo["id"]] = {one[6] for run in photo["runs"] for one in run["detections"]}
    assert cards.keys() == {number for number, seen in verdicts.items() if "class" in seen}
    assert list(photos("sort=id")[1]) == sorted(verdicts)
