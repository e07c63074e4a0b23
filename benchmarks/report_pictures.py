"""Pictures of a report's page for the README: ``python -m benchmarks.report_pictures FOLDER``.

FOLDER holds report.html. It writes docs/report_1280.png and docs/report_390.png: the top of the
page as a desktop and a phone show it. It needs playwright and an installed Chromium.
"""

import argparse
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = {1280: 1900, 390: 1900}  # width and height in pixels of each picture


def main() -> None:
    """Open the page in Chromium at two widths and save the top of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder with report.html")
    parser.add_argument("--into", type=Path, default=DOCS, help="where the pictures go")
    parser.add_argument("--view", default="", help='the part of the address after "#"')
    given = parser.parse_args()
    page = given.folder / "report.html"
    if not page.is_file():
        sys.exit(f"{page} does not exist: give a folder with a report")
    for path in take(page, given.into, given.view):
        print(path)


def take(page: Path, into: Path, view: str = "") -> list[Path]:
    """Save the pictures of ``page`` in the folder ``into``; returns their paths."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no Chromium is installed")
    paths = []
    with sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu"]
        chromium = driver.chromium.launch(executable_path=browser, args=options)
        for width, height in SIZES.items():
            # The window is as high as the picture, so that the page draws all of it.
            tab = chromium.new_page(viewport={"width": width, "height": height})
            tab.goto(f"{page.resolve().as_uri()}#{view}")
            tab.wait_for_selector(".plot svg")
            tab.wait_for_timeout(2000)
            paths.append(into / f"report_{width}.png")
            tab.screenshot(path=paths[-1])
        chromium.close()
    return paths


if __name__ == "__main__":
    main()
