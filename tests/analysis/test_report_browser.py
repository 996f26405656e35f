"""The page in Debian's Chromium: offline, without console errors, by pointer and by keyboard, in light and in dark."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.report import main
from study import metrics, names
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.ledger import Ledger, create_store, default_tracking_uri

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver",
    ),
]
#: What the Tab key must reach: everything that can be clicked, typed into or scrolled.
CONTROLS = "a[href], button, input, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study of two real networks, twins, and a stopped trial."""
    from study.trial.trial import Trial

    storage = tmp_path_factory.mktemp("results")
    create_store(default_tracking_uri(storage))
    ledger = Ledger(default_tracking_uri(storage), "demo")
    spec = {"objectives": {"accuracy": "maximize", "faithfulness": "maximize"}}
    ledger.open_study(
        fingerprint="f" * 64, spec=spec, tags={"version.torch": torch.__version__}, artifact_location=None
    )
    torch.set_num_threads(1)
    for number, weight in enumerate((0.5, 0.0)):
        config = TrialConfig(
            "tiny", 2, 0.05, reg_weight=weight, batch_size=32, data=DataConfig(train_images=64, validation_images=60),
            evaluation=EvaluationConfig(methods=("grad_cam",), images=30),
        )  # fmt: skip
        trial = Trial(config, storage / str(number), device=torch.device("cpu"))
        trial.step()
        trial.step()
        run = ledger.open_trial(number, 0, config.to_dict(), {})
        # The twin of the first is nowhere worse, so that both are on the front.
        trial.history[-1]["val/accuracy"] = 50.0 - 10 * number
        run.sync(trial.history)
        run.finish(names.COMPLETE, scores=trial.history[-1], files=trial.export(trial.folder))
    ledger.open_trial(2, 0, {"network": "tiny", "reg_weight": 1.0}, {}).finish(names.STOPPED, reason="rung 1")
    assert main(["demo", "--storage", str(storage)]) == 0
    return storage / "demo" / "report.html"


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument("--window-size=1250,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # no look-ups by the driver's manager
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


def requests_of(browser: Any) -> set[str]:
    """Addresses that were asked for since the last call, pictures inside the page left out."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {url for url in sent if not url.startswith("data:")}


def test_pointing_at_a_trial_shows_its_card_and_a_click_opens_it(page: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser.get(page.as_uri())
    card = browser.find_element(By.ID, "card")
    assert not card.is_displayed()
    points = browser.find_elements(By.CSS_SELECTOR, "#front-chart a")
    assert points
    with_maps = browser.find_elements(By.CSS_SELECTOR, "#shown article .maps")
    assert len(with_maps) == len(points)
    regularized = browser.find_element(By.CSS_SELECTOR, "#front-chart a:has(circle.mark)")
    ActionChains(browser).move_to_element(regularized.find_element(By.CSS_SELECTOR, ".mark")).perform()
    assert card.is_displayed()
    for words in ("Trial 0, seed 0", "accuracy", "faithfulness", "95 %:", "λ", "image", "λ = 0, trial 1", "says"):
        assert words in card.text, words
    pictures = card.find_elements(By.TAG_NAME, "img")
    assert len(pictures) == 3  # the images, this network's maps, those of the network with lambda = 0
    assert all(p.get_property("naturalWidth") == 6 * 32 for p in pictures)
    assert browser.find_elements(By.CSS_SELECTOR, "path.highlight")
    ActionChains(browser).click().perform()
    assert browser.switch_to.active_element.get_attribute("id") == "trial-0-0"
    assert not card.is_displayed()
    assert browser.get_log("browser") == []
    assert requests_of(browser) == {page.as_uri()}


def test_the_keyboard_reaches_every_control(page: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    browser.get(page.as_uri())
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    wanted = {e.id for e in browser.find_elements(By.CSS_SELECTOR, CONTROLS) if e.is_displayed()}
    reached, card = set(), browser.find_element(By.ID, "card")
    shown = 0
    for _ in range(len(wanted) + 5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        reached.add(active.id)
        if active.get_attribute("data-row") and card.is_displayed():
            shown += 1
            ActionChains(browser).send_keys(Keys.ESCAPE).perform()
            assert not card.is_displayed()
    assert wanted <= reached
    assert shown == len(browser.find_elements(By.CSS_SELECTOR, "#front-chart a"))

    point = browser.find_element(By.CSS_SELECTOR, "#front-chart a")
    browser.execute_script("arguments[0].focus()", point)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert "#" + browser.switch_to.active_element.get_attribute("id") == point.get_dom_attribute("href")

    wanted_trial = browser.find_element(By.ID, "wanted")
    wanted_trial.send_keys("2" + Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "any-trial"
    assert "Trial 2, seed 0 · stopped" in browser.switch_to.active_element.text
    wanted_trial.clear()
    wanted_trial.send_keys("77" + Keys.ENTER)
    assert browser.find_element(By.ID, "answer").text == "there is no trial 77"
    assert browser.get_log("browser") == []


def test_light_and_dark_and_without_script(page: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    contrasts = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page.as_uri())
        ground, ink = browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        contrasts.append((luminance(ground), luminance(ink)))
    assert contrasts[0][0] > 0.9 > 0.1 > contrasts[0][1]
    assert contrasts[1][0] < 0.1 < 0.7 < contrasts[1][1]

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(page.as_uri())
    assert not browser.find_element(By.ID, "finder").is_displayed()
    tables = [t.text for t in browser.find_elements(By.CSS_SELECTOR, "main table") if t.is_displayed()]
    for words in (
        "accuracy",
        "rung 1",
        "GPU" if torch.cuda.is_available() else "CPU-hours",
        "fingerprint",
        f"faithfulness ({metrics.FAITHFULNESS.unit}",
    ):
        assert any(words in text for text in tables), words
    assert browser.find_element(By.CSS_SELECTOR, "#shown article .maps img").is_displayed()


def luminance(colour: str) -> float:
    """Of ``rgb(r, g, b)``, relative, in [0, 1]."""
    channels = [int(c) / 255 for c in colour.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
