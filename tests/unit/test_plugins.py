"""Device classes of plug-ins: the documentation's example, what they may be, and that nothing else is ever run."""

import re
from pathlib import Path

import pytest

from privmem.cluster import run
from privmem.cluster.assembly import make_plan
from privmem.cluster.cli import main
from privmem.cluster.config import load_config
from privmem.cluster.errors import ConfigError
from privmem.cluster.plugins import Plugin, plugin_classes, read_plugins
from privmem.nodeagent.device.plugin import DeviceClass

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
PCM = re.search(r"```python\n(.*?)```", PAGE, re.S).group(1)
RACK = re.search(r"```yaml\n(.*?)```", PAGE, re.S).group(1)


@pytest.fixture
def files(tmp_path):
    plugin, rack = tmp_path / "pcm.py", tmp_path / "rack.yaml"
    plugin.write_text(PCM)
    rack.write_text(RACK)
    return plugin, rack


def test_the_example_of_the_documentation_wears_out(files):
    plugin, rack = files
    rows = run(rack, plugins=[plugin], validate=True).tables["device"].to_pylist()
    mine = [row for row in rows if row["device"] == "h0.n1"]
    assert [row["read_ns"] for row in mine] == [351] * 10
    wear = [row["write_ns"] - 900 - row["write_bytes"] // 4096 for row in mine]
    assert all(0 <= rest < 20 for rest in wear)  # what the load adds
    assert mine[-1]["write_ns"] > mine[0]["write_ns"] > 900


def test_runs_of_one_text_are_equal_and_of_another_are_others(files):
    plugin, rack = files
    first, again = (run(rack, plugins=[plugin]).digest for _ in range(2))
    moved = plugin.with_name("other.py")
    moved.write_text(PCM)
    assert first == again == run(rack, plugins=[moved]).digest
    plugin.write_text(PCM + "# a remark\n")
    assert run(rack, plugins=[plugin]).digest != first


def test_verbs_take_it(files, capsys):
    plugin, rack = files
    assert main(["validate", str(rack), "--plugin", str(plugin)]) == 0
    assert main(["topo", str(rack), "--plugin", str(plugin)]) == 0
    assert "tier 22, from 2816: node 1 (abstract distance 2880)" in capsys.readouterr().out
    assert (
        main(["run", str(rack), "--plugin", str(plugin), "--out", str(rack.parent / "out"), "--quiet"]) == 0
    )
    assert main(["resume", str(rack.parent / "out"), "--plugin", str(plugin)]) == 0


def test_a_configuration_alone_runs_nothing(files):
    plugin, rack = files
    plugin.write_text(f"open({str(plugin.parent / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError) as caught:
        load_config(rack)
    reason = "a class of a plug-in that is loaded (there is none); name its file with --plugin"
    assert str(caught.value) == f"{rack}:11: hosts.0.nodes.1.memory.plugin: found 'pcm'; allowed: {reason}"
    rack.write_text(RACK.replace("plugin: pcm", f"plugin: {plugin}"))
    with pytest.raises(ConfigError, match="a name of at most 48 letters"):
        load_config(rack)
    assert not (plugin.parent / "ran").exists()


def test_a_plugin_is_not_run_for_a_rack_without_one(files, monkeypatch):
    monkeypatch.setattr("privmem.cluster.plugins.read_plugins", lambda files: pytest.fail("read"))
    _, rack = files
    rack.write_text(
        RACK.replace(
            "{class: plugin, plugin: pcm, capacity: 4MiB, options: {wear_bytes: 4096}}",
            "{class: cxl, capacity: 4MiB}",
        )
    )
    assert load_config(rack).plugins == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "p.py: found no list DEVICE_CLASSES; allowed: one with at least a DeviceClass"),
        (
            "DEVICE_CLASSES = []\n",
            "p.py: found no list DEVICE_CLASSES; allowed: one with at least a DeviceClass",
        ),
        ("DEVICE_CLASSES = [3]\n", "p.py: DEVICE_CLASSES: found 3; allowed: DeviceClass(...)"),
        ("a = 1\nb = (\n", "p.py:2: SyntaxError: '(' was never closed (p.py, line 2)"),
        ("a = 1\n\nraise OSError('no')\n", "p.py:3: OSError: no"),
        (
            "from privmem.nodeagent.device.plugin import DeviceClass\nDeviceClass('m', 0, 1, 1)\n",
            "p.py:2: ValueError: m: read_ns: found 0; allowed: 1 or more",
        ),
    ],
)
def test_what_is_no_plugin(text, message):
    with pytest.raises(ConfigError) as caught:
        plugin_classes([Plugin("p.py", text)])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_ns": 1.5}, "m: read_ns: found 1.5; allowed: 1 or more"),
        ({"write_bandwidth": -1}, "m: write_bandwidth: found -1; allowed: 0 or more"),
        (
            {"curve": ((0, 1000), (50, 900))},
            "m: curve: found ((0, 1000), (50, 900)); allowed: (0, 1000) first, then pairs that rise",
        ),
        ({"adistance": True}, "m: adistance: found True; allowed: 1 or more"),
    ],
)
def test_figures_that_are_none(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DeviceClass("m", **({"read_ns": 1, "write_ns": 1, "read_bandwidth": 1} | options))


def test_two_plugins_with_one_name(files):
    plugin, _ = files
    copy = plugin.with_name("copy.py")
    copy.write_text(PCM)
    with pytest.raises(ConfigError, match="both have a device class 'pcm'"):
        plugin_classes(read_plugins([plugin, copy]))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"--plugin: .*none.py: cannot be read: No such file"):
        read_plugins([tmp_path / "none.py"])
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="found bytes that are not UTF-8"):
        read_plugins([tmp_path / "binary.py"])


def test_tier_and_timing_are_the_class_s_unless_the_configuration_says_otherwise(files):
    plugin, rack = files
    rack.write_text(RACK.replace("capacity: 4MiB, options", "capacity: 4MiB, read_latency: 500ns, options"))
    plan = make_plan(load_config(rack, plugins=[plugin]))
    specs = {entry.name: entry.spec for entry in plan.participants}
    timing = specs["device/h0.n1"]["timing"]
    assert (timing["read_ns"], timing["write_ns"], timing["write_bandwidth"]) == (500, 900, 2 * 10**9)
    assert specs["host/h0"]["topology"]["nodes"][1]["adistance"] == 2880
    assert list(plan.identity["plugins"]) == ["pcm"]
