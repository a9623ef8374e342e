"""The page in headless Chromium, through everything that it does."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from device_runtime.client.records import kept_records
from device_runtime.fleet import file
from device_runtime.fleet.links import Link, Window
from device_runtime.fleet.policies.recording import Recording
from device_runtime.mqtt.address import BrokerAddress
from tests.support.page_timing import FIRST_VIEW, FRAMES
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel
from tests.toolkit.dashboard.conftest import FLEET
from toolkit.rollout.files import RolloutFiles, default_folder
from toolkit.rollout.rollout import Plan, Rollout

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("chromium is not installed (Debian: apt install chromium chromium-driver)", allow_module_level=True)

TOKEN = "a-token-of-these-tests"


class Browser:
    """One browser, and what a person does with it."""

    def __init__(self, width: int, height: int, touch: bool) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.add_argument(f"--window-size={width},{height}")
        if touch:
            metrics = {"width": width, "height": height, "pixelRatio": 1.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def open(self, url: str) -> None:
        self.driver.get(url)

    def leave(self) -> None:
        """Forget the page before, which asks a server that is gone, and what the console said of it."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")

    def all(self, css: str, text: str = "") -> list[WebElement]:
        return [found for found in self.driver.find_elements(By.CSS_SELECTOR, css) if text in found.text]

    def one(self, css: str, text: str = "", timeout_s: float = 30.0) -> WebElement:
        """The first that is there and seen, in time."""
        found: list[WebElement] = []

        def there() -> bool:
            found[:] = [element for element in self.all(css, text) if element.is_displayed()]
            return bool(found)

        wait_until(lambda: self._calmly(there), timeout_s, f"{css} {text!r} never came; {self.text()[:1500]}")
        return found[0]

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def until(self, wanted: Callable[[], object], timeout_s: float = 30.0) -> None:
        wait_until(lambda: bool(self._calmly(wanted)), timeout_s, f"it never came; the page says {self.text()[:1500]}")

    def write(self, css: str, text: str) -> None:
        field = self.one(css)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text)

    def faults(self) -> list[str]:
        """What the console says of scripts and of the content security policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]

    @staticmethod
    def _calmly(wanted: Callable[[], object]) -> object:
        """An element may be drawn again while it is looked at."""
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return wanted()
        except StaleElementReferenceException:
            return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser(1280, 900, touch=False)
    yield started
    started.driver.quit()


def report(client, device: str, state: str = "ready", **info: object) -> None:
    """What a device leaves at the broker."""
    client.publish(f"stonechat/1/{device}/out/state", {"state": state, "boot": 1})
    known = {"device": device, "board": "Raspberry Pi 5", "version": "0.1.0", "models": ["advisor"]}
    client.publish(f"stonechat/1/{device}/out/info", known | info)


def test_the_fleet_is_shown_and_stays_current(dashboard, browser, peer):
    page, client = dashboard(), peer()
    browser.open(page.url)
    browser.one("tr", "north")
    report(client, "north", "busy", pool="herd", bundles={"advisor": "boiler-advisor 3"})
    client.publish(
        "stonechat/1/north/out/health", {"tps_p50": 41.25, "temperature_c": 83.4, "throttled": True, "queue": 5}
    )
    row = browser.one("tr", "41.")
    for text in ("north", "busy", "advisor", "83", "5", "herd", "Raspberry Pi 5"):
        assert text in row.text
    browser.until(lambda: browser.all("td.hot", "83"))
    client.publish("stonechat/1/north/out/state", {"state": "lost", "boot": 1})
    browser.one("tr", "lost")
    browser.one("nav .mark.bad", "1")
    report(client, "<b>stranger</b>".strip("<>/b"), "ready", board='<img src=x onerror="document.title=1">')
    browser.one("tr", "<img src=x")  # as text
    assert browser.driver.title == "stonechat"
    browser.write("input[type=search]", "south")
    browser.until(lambda: len(browser.all("tbody tr")) == 1)
    browser.write("input[type=search]", "")
    browser.one("button.chip", "lost").click()
    browser.until(lambda: [row.text.split()[0] for row in browser.all("tbody tr")] == ["north"])
    browser.one("td.device button", "north").click()
    detail = browser.one("dialog")
    browser.until(lambda: "boiler-advisor 3" in detail.text and "throttled" in detail.text)
    loaded = browser.driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert len(loaded) > 10 and all(name.startswith(page.url) for name in loaded)  # nothing from elsewhere
    detail.send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.all("dialog"))
    assert browser.faults() == []


@pytest.mark.slow
class TestSlowly:
    def test_links_show_answers_and_how_sure_they_are(self, dashboard, browser, peer):
        page, client = dashboard(), peer()
        browser.open(f"{page.url}/#links")
        card = browser.one(".card", "hot")
        assert "plant/+/boiler" in card.text and "temp_c > 80" in card.text and "No answer yet" in card.text
        client.publish(
            "stonechat/1/north/out/link/hot",
            {"answer": {"severity": "alarm"}, "confidence": {"severity": 0.62}, "unsure": True, "reason": "0.62",
             "reading": {"temp_c": 91}, "topic": "plant/3/boiler", "link": "hot", "device": "north"},
        )  # fmt: skip
        browser.until(lambda: "alarm" in browser.one(".card", "hot").text)
        text = browser.one(".card", "hot").text
        assert "temp_c 91" in text and "62" in text and "unsure" in text and "plant/3/boiler" in text
        client.publish("stonechat/1/north/out/link/hot", {"text": "<script>document.title=2</script>", "link": "hot"})
        browser.one(".card", "<script>")
        assert browser.driver.title == "stonechat" and browser.faults() == []

    def test_a_link_that_its_device_refuses_is_marked_and_the_reason_is_text(self, dashboard, browser, phone, peer):
        page, client = dashboard(), peer()
        why = "the answer of link 'hot' cannot be given: no token for 'ü' <b>"
        report(client, "north", links_refused={"hot": why, "constructor": why})
        report(client, "south")
        browser.open(page.url)
        assert "2" in browser.one("nav a[href='#links'] .mark").text
        assert "leaves out 2 links" in browser.one("tr", "north").text
        assert "leaves out" not in browser.one("tr", "south").text
        report(client, "north", links_refused={"hot": why}, not_open={"advisor": "It has 3 signatures."})
        browser.one("tr", "leaves out hot")
        assert "not open" in browser.one("tr", "north").text
        browser.one("td.device button", "north").send_keys(Keys.ENTER)  # the reason needs no mouse
        browser.until(lambda: f"hot: {why}" in browser.one("dialog .refused").text)
        assert "advisor is not open. It has 3 signatures." in browser.one("dialog").text
        browser.one("dialog").send_keys(Keys.ESCAPE)
        browser.until(lambda: not browser.all("dialog"))
        browser.one("nav a[href='#links']").send_keys(Keys.ENTER)
        card = browser.one(".card", "left out")
        assert f"north leaves it out: {why}" in card.text
        assert "No answer will come" in card.text and "No answer yet" not in card.text
        report(client, "south", links_refused={"hot": why})
        browser.one(".refused", "north, south leave it out")
        phone.open(f"{page.url}/#fleet")
        phone.one("tr", "leaves out hot")
        assert phone.driver.execute_script("return document.documentElement.scrollWidth") <= 390
        report(client, "north")  # its model is another one
        report(client, "south")
        browser.one(".card", "No answer yet")
        assert not browser.all(".refused, a[href='#links'] .mark") and browser.faults() == phone.faults() == []

    def test_any_device_is_asked_and_its_answer_streams(self, dashboard, browser, on_air):
        model = ScriptedModel(["Open", " the", " window."], gated=True)
        device = on_air(model)
        page = dashboard()
        browser.open(f"{page.url}/#ask")
        name = f"{device.topics.device}/default"
        browser.until(lambda: browser.all(f"option[value='{name}']"))
        browser.one("select").send_keys(name)
        browser.write(".ask textarea", "It is hot.")
        browser.one(".ask textarea").send_keys(Keys.CONTROL, Keys.ENTER)
        model.gate.release()
        browser.until(lambda: browser.one(".reply").text == "Open")
        model.gate.release(5)
        browser.until(lambda: browser.one(".reply").text == "Open the window.")
        browser.until(lambda: "3 tokens" in browser.one(".talk").text)
        browser.write(".ask textarea", "And now?")
        browser.one("button[type=submit]").click()
        browser.one("button", "Stop").click()
        finals = device.client.until(lambda topic, value: "/reply/" in topic and value.get("finish") == "cancelled")
        assert finals
        browser.until(lambda: "stopped" in browser.all(".talk")[0].text)

    def test_the_page_is_loaded_again_in_the_middle_of_an_answer(self, dashboard, browser, on_air):
        model = ScriptedModel(["a"] * 100, gated=True)
        device = on_air(model)
        page = dashboard()
        browser.open(f"{page.url}/#ask/{device.topics.device}/default")
        browser.write(".ask textarea", "Go on.")
        browser.until(lambda: browser.one("button[type=submit]").is_enabled())
        browser.one("button[type=submit]").click()
        model.gate.release(3)
        browser.until(lambda: browser.one(".reply").text == "aaa")
        browser.driver.refresh()
        device.client.until(lambda topic, value: "/reply/" in topic and value.get("finish") == "cancelled")
        browser.one(".ask textarea")
        browser.until(lambda: browser.all(f"option[value='{device.topics.device}/default']"))

    def test_a_link_is_changed_tried_and_saved(self, dashboard, browser, on_air):
        on_air(ScriptedModel(['{"ok": true}']), device="north")
        page = dashboard(FLEET.replace("model: advisor", "model: default").replace("  advisor:", "  default:"))
        browser.open(f"{page.url}/#links")
        browser.one(".card", "hot")
        browser.one("button", "Edit").click()
        when = "input[aria-label^='When']"
        browser.write(when, "temp_c >")
        browser.one(".fault", "not an expression")
        save = browser.one("dialog footer button", "Save")
        browser.until(lambda: not save.is_enabled())
        browser.write(when, "temp_c > 95")
        browser.write("textarea[aria-label^='Answer']", "{type: object, properties: {ok: {type: boolean}}}")
        browser.one(".difference .plus", "temp_c > 95")
        browser.write("textarea[aria-label=Readings]", 'plant/3/boiler {"temp_c": 96}\nplant/3/boiler {"temp_c": 90}')
        browser.one("dialog button", "Try").click()
        tried = browser.one(".tried")
        assert "on north: 1 answered, 1 did not wake the model" in tried.text and "true" in tried.text
        assert "95" not in page.fleet.read_text(encoding="utf-8")
        browser.until(lambda: save.is_enabled())
        save.click()
        browser.until(lambda: not browser.all("dialog"))
        browser.one(".card", "temp_c > 95")
        text = page.fleet.read_text(encoding="utf-8")
        assert "when: temp_c > 95" in text and "# Most readings never wake the model." in text
        assert file.load(page.fleet).links[0].answer is not None

    def test_the_page_follows_the_file_that_somebody_edits(self, dashboard, browser):
        page = dashboard()
        browser.open(f"{page.url}/#links")
        browser.one(".card", "hot")
        browser.one("button", "Edit").click()
        browser.write("input[aria-label^='When']", "temp_c > 95")
        save = browser.one("dialog footer button", "Save")
        browser.one(".difference .plus", "temp_c > 95")
        good = page.fleet.read_text(encoding="utf-8")
        page.fleet.write_text(good.replace("}}/advice", "}}/elsewhere") + "# by hand\n", encoding="utf-8")
        browser.until(lambda: "}}/elsewhere" in browser.text())
        browser.until(lambda: save.is_enabled())
        save.click()
        browser.one("dialog .fault", "fleet.yaml has changed meanwhile")
        assert "95" not in page.fleet.read_text(encoding="utf-8")
        browser.driver.refresh()
        browser.one("button", "Edit").click()
        browser.write("input[aria-label^='When']", "temp_c > 95")
        browser.one(".difference .plus", "temp_c > 95")
        save = browser.one("dialog footer button", "Save")
        browser.until(lambda: save.is_enabled())
        save.click()
        browser.until(lambda: not browser.all("dialog"))
        text = page.fleet.read_text(encoding="utf-8")
        assert "temp_c > 95" in text and "}}/elsewhere" in text and "# by hand" in text
        page.fleet.write_text(text + "  : [\n", encoding="utf-8")
        browser.one("[role=alert]", "is not YAML")
        page.fleet.write_text(text, encoding="utf-8")
        browser.until(lambda: not browser.all("[role=alert]"))
        assert [fault for fault in browser.faults() if "/api/links/save" not in fault] == []  # that one was refused

    def test_a_link_is_added_with_the_keyboard_alone(self, dashboard, browser):
        page = dashboard()
        browser.open(f"{page.url}/#links")
        browser.one("button", "New link").send_keys(Keys.ENTER)
        browser.one("dialog")
        keys = browser.driver.switch_to.active_element
        keys.send_keys(Keys.TAB)
        for text in ("cold", "plant/+/air", "temp_c < 5", "{{ temp_c }} C. What now?", "", "plant/cold"):
            browser.driver.switch_to.active_element.send_keys(text + Keys.TAB)
        browser.driver.switch_to.active_element.send_keys(Keys.SPACE)  # the first device
        browser.one(".difference .plus", "temp_c < 5")
        save = browser.one("dialog footer button", "Save")
        browser.until(lambda: save.is_enabled())
        save.send_keys(Keys.ENTER)
        browser.one(".card", "cold")
        fleet = file.load(page.fleet)
        assert fleet.links[1].name == "cold" and fleet.devices["north"].links == ("hot", "cold")

    def test_a_link_is_deleted_and_the_page_says_what_remains(self, dashboard, browser):
        page = dashboard()
        browser.open(f"{page.url}/#links")
        browser.one(".card", "hot")
        browser.one("button", "Edit").click()
        browser.one("dialog button.danger", "Delete").send_keys(Keys.ENTER)
        assert file.load(page.fleet).links  # asked once more
        browser.one("dialog button.danger", "Delete hot for good?").send_keys(Keys.ENTER)
        remains = browser.one(".remains", "Link hot is deleted")
        assert "stonechat device init USER@HOST --device north --fleet fleet.yaml" in remains.text
        fleet = file.load(page.fleet)
        assert fleet.links == () and fleet.devices["north"].links == ()
        assert "# The hall's devices. This comment stays." in page.fleet.read_text(encoding="utf-8")
        browser.one(".empty", "No links")
        assert browser.faults() == []

    def test_an_answer_is_corrected_and_records_and_energy_are_shown(self, dashboard, browser, on_air):
        script = ScriptedModel(['{"severity": "ok"}'])
        script.confidence = {"severity": 0.71}
        answer = {"type": "object", "properties": {"severity": {"enum": ["ok", "alarm"]}}}
        link = Link(
            name="hot", source="plant/3/boiler", prompt="{{ temp_c }} after {{ window | length }}",
            to="plant/advice", answer=answer, window=Window(),
        )  # fmt: skip
        device = on_air(script, device="hall", links=(link,), recording=Recording(keep=5))
        page = dashboard(FLEET.replace("north", "hall"))
        browser.open(f"{page.url}/#links")
        for temp_c in (91, 97):
            device.client.publish("plant/3/boiler", {"temp_c": temp_c})
            browser.until(lambda: f"temp_c {temp_c}" in browser.one(".card", "hot").text.replace("\n", " "))  # noqa: B023
        browser.until(lambda: "severity ok" in browser.one(".card", "hot").text.replace("\n", " "))
        browser.one("button[aria-label^='Correct']").send_keys(Keys.ENTER)
        browser.write("dialog .form label:nth-child(1) input", "warm")
        browser.write("dialog .form label:nth-child(2) input", "anna")
        browser.one("dialog footer button", "Keep it").click()
        browser.one("dialog .fault", "expected")  # what the device says
        browser.write("dialog .form label:nth-child(1) input", "alarm")
        browser.one("dialog footer button", "Keep it").click()
        browser.one("dialog .kept", "Kept on hall")
        (example,) = kept_records(BrokerAddress("127.0.0.1", device.client.port), "hall", "examples")
        assert example["input"] == {"prompt": "97 after 1"}
        assert example["answer"] == {"severity": "alarm"} and example["who"] == "anna"
        browser.one("dialog").send_keys(Keys.ESCAPE)
        energy = {"energy_j": 7200, "energy_mwh_answer": 0.0251, "energy_how": "computed: 6 W"}
        device.client.publish("stonechat/1/hall/out/health", {"answers": 1, **energy})
        browser.open(f"{page.url}/#fleet")
        browser.one("td.device button", "hall").click()
        browser.until(
            lambda: "0.0251 mWh computed: 6 W" in browser.one("dialog").text and "2.00 Wh" in browser.one("dialog").text
        )
        browser.one("dialog button", "Show what it has kept").click()
        record = browser.one("dialog .records")
        assert "temp_c 97" in record.text and "71" in record.text
        assert [fault for fault in browser.faults() if "/api/correct" not in fault] == []  # that one was refused
        own = device.client.client  # the broker is the next test's, too
        own.publish("stonechat/1/hall/out/link/hot", b"", qos=1, retain=True).wait_for_publish(9)

    def test_roll_outs_are_paused_and_aborted(self, dashboard, browser, tmp_path):
        files = RolloutFiles(default_folder())  # the test's own
        fleet = str(tmp_path / "fleet.yaml")
        plan = Plan("20260101-000000-abcd", "/b", "0" * 64, "advisor", "2", fleet, "all", ("north", "south"))
        page = dashboard(operator=None)
        browser.open(f"{page.url}/#rollouts")
        browser.one(".empty", "No roll-outs")
        with files.carrying_out(plan.id):  # as the process does that carries it out
            files.write(replace(Rollout.of(plan), canaries=("north",)))
            card = browser.one(".rollout", "advisor")
            assert "2 waiting" in card.text
            browser.one(".rollout button", "Pause").click()
            wait_until(lambda: files.take_wish(plan.id) == "pause")
            files.write(replace(files.read(plan.id), paused=True))
        browser.one(".rollout", "stonechat rollout resume 20260101-000000-abcd")
        abort = browser.one(".rollout button", "Abort")
        abort.click()
        browser.one(".rollout button", "Abort for good?").click()
        browser.one(".rollout", "aborted")
        assert files.read(plan.id).stage.value == "aborted"

    def test_login_and_a_wrong_token(self, dashboard, browser):
        page = dashboard(token=TOKEN)
        browser.open(page.url)
        browser.write("input[type=password]", "wrong")
        browser.one("button[type=submit]").click()
        browser.one(".fault", "this is not the token")
        browser.write("input[type=password]", TOKEN)
        browser.one("button[type=submit]").click()
        browser.one("tr", "north")
        assert TOKEN not in browser.driver.current_url
        browser.driver.refresh()
        browser.one("tr", "north")
        browser.one("button", "Log out").click()
        browser.one("input[type=password]")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("tab", ["fleet", "links", "rollouts", "ask"])
    def test_a_phone_shows_all_of_it_without_scrolling_sideways(self, dashboard, peer, phone, tab, scheme):
        page, client = dashboard(), peer()
        report(client, "a-device-with-a-name-that-is-rather-long-for-a-phone", board="A board with a long name indeed")
        phone.leave()
        phone.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        phone.open(f"{page.url}/#{tab}")
        phone.one("nav a[aria-current=page]")
        if tab == "fleet":  # with what it is about
            phone.one("tr", "a-device-with-a-name")
        width = phone.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
        ground, ink = phone.driver.execute_script(
            "const of = getComputedStyle(document.body); return [of.backgroundColor, of.color]"
        )
        assert contrast(ground, ink) > 7
        assert phone.faults() == []

    def test_a_thousand_devices_and_sixty_messages_a_second(self, dashboard, browser, peer):
        client = peer()
        for number in range(1000):
            name = f"hall-{number // 50}-{number % 50:02d}"
            state = json.dumps({"state": "ready", "boot": 1})
            info = json.dumps({"device": name, "board": "Raspberry Pi 5", "version": "0.1.0", "models": ["advisor"]})
            client.client.publish(f"stonechat/1/{name}/out/state", state, qos=1, retain=True)
            last = client.client.publish(f"stonechat/1/{name}/out/info", info, qos=1, retain=True)
        last.wait_for_publish(30)
        page = dashboard()
        try:
            browser.open(page.url)
            browser.until(lambda: browser.driver.execute_script(FIRST_VIEW))
            first_view_s = browser.driver.execute_script(FIRST_VIEW) / 1000
            assert len(browser.driver.find_elements(By.CSS_SELECTOR, "tbody tr")) >= 100
            browser.driver.execute_script(FRAMES)
            seconds, rate = 5, 60
            begun_s = time.monotonic()
            for number in range(seconds * rate):
                name = f"hall-{number % 20}-{number % 50:02d}"
                client.client.publish(f"stonechat/1/{name}/out/health", json.dumps({"queue": number}), qos=0)
                time.sleep(max(0.0, begun_s + number / rate - time.monotonic()))
            lag_ms = browser.driver.execute_script("return window.worst")
            last = seconds * rate - 1
            assert page.live._rows[f"hall-{last % 20}-{last % 50:02d}"]["health"]["queue"] == last
            browser.write("input[type=search]", f"hall-{last % 20}-{last % 50:02d}")
            browser.one("tbody tr", str(last))
            print(f"first view {first_view_s:.2f} s; longest pause of the page at 60 messages a second {lag_ms:.0f} ms")
            assert first_view_s < 4  # asked for: 2 s, on a machine that does nothing else
            assert lag_ms < 500  # the same: a busy machine may take this page its processor
        finally:
            for number in range(1000):
                for what in ("state", "info"):
                    name = f"hall-{number // 50}-{number % 50:02d}"
                    last = client.client.publish(f"stonechat/1/{name}/out/{what}", b"", qos=1, retain=True)
            last.wait_for_publish(30)


@pytest.fixture(scope="module")
def phone() -> Iterator[Browser]:
    started = Browser(390, 844, touch=True)
    yield started
    started.driver.quit()


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two CSS colours (WCAG 2.2, 1.4.3)."""

    def light(colour: str) -> float:
        shares = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
