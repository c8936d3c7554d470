"""What users install: a wheel, built from the sdist, in an environment of its own, beside files named like our rooms.

Torch and the other dependencies are not downloaded again: the new environment reads them from the one that runs the
tests. So this test shows what the wheel holds and how it behaves, not that its list of requirements can be resolved.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from fastercache.extras import EXTRAS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("policies", "analysis", "tuner", "experiments")


def sh(*words: str | Path, cwd: Path, slim: bool = False) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"SLIM": "1" if slim else ""}
    return subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False, env=env)


def done(*words: str | Path, cwd: Path, slim: bool = False) -> str:
    ran = sh(*words, cwd=cwd, slim=slim)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out)
    done(*pip, sdist, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel. With SLIM=1 it does not see what the extras bring."""
    env = tmp_path_factory.mktemp("env") / "env"
    done(sys.executable, "-m", "venv", "--without-pip", env, cwd=env.parent)
    found = env / "bin" / "python"
    done(sys.executable, "-m", "pip", "--python", found, "install", "--no-deps", "--quiet", wheel, cwd=env.parent)
    site = installed_in(found)
    ours = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert ours == {"fastercache"}, "one top-level package of ours"
    # A path in a .pth file is searched for modules; the .pth files there, our editable install's too, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # peft comes with `dev` only; diffusers imports it where it stands, and it cannot do without transformers.
    hidden = {name for names in EXTRAS.values() for name in names} | {"peft"}
    (site / "sitecustomize.py").write_text(
        textwrap.dedent(
            f"""
            import os, sys
            from importlib.machinery import PathFinder

            class Slim(PathFinder):
                @classmethod
                def find_spec(cls, name, path=None, target=None):
                    return None if name.partition(".")[0] in {hidden!r} else PathFinder.find_spec(name, path, target)

            if os.environ.get("SLIM"):
                sys.meta_path[sys.meta_path.index(PathFinder)] = Slim
            """
        )
    )
    return found


def installed_in(python: Path) -> Path:
    return Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=python.parent).strip())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A researcher's folder: files of his own with our rooms' names."""
    folder = tmp_path_factory.mktemp("work")
    for name in (*ROOMS[:-1], "runtime"):
        (folder / f"{name}.py").write_text(f"raise AssertionError('the wrong {name}')\n")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "__init__.py").write_text("raise AssertionError('the wrong experiments')\n")
    return folder


def test_a_script_beside_files_of_the_same_names(python: Path, workplace: Path) -> None:
    (workplace / "script.py").write_text(
        textwrap.dedent(
            """
            import fastercache as fc
            from fastercache.analysis import record
            from fastercache.experiments import reference
            from fastercache.tuner import tune

            pipe = reference.load("latte-digits")
            pipe.set_progress_bar_config(disable=True)
            call = reference.GENERATION["latte-digits"].kwargs() | {"num_inference_steps": 4}
            with fc.attach(pipe, fc.FasterCache(start=0.0)) as session:
                pipe("a red seven moving left", **call)
            assert session.last.speedup_flops > 1
            study = tune(pipe, ["a red seven moving left"], budget="psnr>=1", call=call, trials=2, out="study")
            print(fc.__file__, len(study.records), record.__module__)
            """
        )
    )
    where, trials, module = done(python, "script.py", cwd=workplace).split()
    assert Path(where).parent.parent == installed_in(python) and int(trials) >= 2
    assert module.startswith("fastercache.analysis")


def test_the_command_line_beside_files_of_the_same_names(python: Path, workplace: Path) -> None:
    script = python.parent / "fastercache"
    for command in ([script], [python, "-m", "fastercache"]):
        assert "teacache" in done(*command, "policies", cwd=workplace)
    words = ["tune", "latte-digits", "--budget", "psnr>=1", "--steps", "4", "--count", "1", "--trials", "2"]
    done(script, *words, "--out", "tuned.json", cwd=workplace)
    words = ["generate", "latte-digits", "--config", "tuned.json", "--steps", "4", "--out", "made", "--json"]
    assert '"speedup_flops"' in done(script, *words, cwd=workplace)


def test_the_report_finds_the_parts_of_its_page(python: Path, workplace: Path) -> None:
    words = [
        "plan",
        "latte-digits",
        "--speedup",
        "2",
        "--effort",
        "0",
        "--count",
        "1",
        "--steps",
        "4",
        "--out",
        "plan.json",
    ]
    done(python.parent / "fastercache", *words, "--held-out-count", "0", "--study", "planned", cwd=workplace)
    done(python.parent / "fastercache", "report", "planned", "plan.json", "--out", "page.html", cwd=workplace)
    assert "class Rehearsal" in (workplace / "page.html").read_text("utf-8")


def test_the_plain_installation_applies_policies_and_names_the_extra_for_the_rest(
    python: Path, workplace: Path
) -> None:
    code = """
        import sys
        import torch
        import fastercache as fc
        from diffusers import LatteTransformer3DModel

        small = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2)
        small |= dict(sample_size=8, patch_size=2)
        model = LatteTransformer3DModel(**small, cross_attention_dim=16, caption_channels=16, video_length=2)
        x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, 16)
        with fc.attach(model, fc.StaticInterval(interval=2), guidance="none") as session, torch.no_grad():
            session.start([999.0, 500.0])
            for t in (999, 500):
                model(x, encoder_hidden_states=text, timestep=torch.tensor([t]))
        print("attached", sorted({"optuna", "matplotlib", "transformers", "typer"} & set(sys.modules)))
    """
    assert done(python, "-c", textwrap.dedent(code), cwd=workplace, slim=True).strip() == "attached []"
    for room in ("analysis", "tuner", "experiments", "zoo", "testing"):
        ran = sh(python, "-c", f"import fastercache.{room}", cwd=workplace, slim=True)
        assert ran.returncode == 1 and "pip install 'fastercache[lab]'" in ran.stderr.splitlines()[-1]
    for command in ([python.parent / "fastercache"], [python, "-m", "fastercache"]):
        ran = sh(*command, "--help", cwd=workplace, slim=True)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
        assert "typer" in ran.stderr and "pip install 'fastercache[lab]'" in ran.stderr
