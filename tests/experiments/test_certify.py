"""The command `certify`: a certificate in the file, said by whatever applies it; resumed, and never on prompts seen."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fastercache as fc
from fastercache import zoo
from fastercache.experiments import cli
from fastercache.experiments.jobs import certifying, planning
from fastercache.experiments.pipelines import Subject, open_pipeline, shipped_captions
from fastercache.prompts import prompt_hash
from fastercache.tuned import Measured, OtherConditions, Results, TunedConfig
from fastercache.tuner.setting import Setting

pytestmark = pytest.mark.usefixtures("loaded_once")

STEPS = 3
LOOSE = ["--rate", "0.5", "--level", "0.9"]
"""0.5^4 = 0.0625 is below 0.1, 0.5^3 = 0.125 is not: four prompts without a miss."""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def tuned(path: Path, computed: tuple[int, ...], seen: tuple[str, ...] = ("a red seven moving left",)) -> Path:
    pipe = open_pipeline("latte-digits").pipe
    measured = Measured(
        prompts=1, speedup_flops=STEPS / len(computed), seconds=1.0, cached_bytes=0, hardware="test", quality={}
    )
    config = TunedConfig.describe(
        pipe,
        fc.Planned(steps=STEPS, computed=computed),
        steps=STEPS,
        guidance_scale=4.0,
        guidance="batched",
        budget="p90:psnr>=1",
        measured=Results(search=measured),
        seen=tuple(map(prompt_hash, seen)),
    )
    return config.save(path)


def certify(tmp_path: Path, *files: Path, **options: str) -> Result:
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    folder = ["--steps", str(STEPS), "--study", str(tmp_path / "study"), "--json"]
    return run("certify", "latte-digits", *map(str, files), *LOOSE, *folder, *words)


def test_the_certificate_goes_into_the_file_and_is_said(tmp_path: Path) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1))
    result = certify(tmp_path, path)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    words = "misses psnr>=1 on at most 50 % of prompts like these, 90 % sure; 4 prompts, 0 misses"
    config = fc.load(path)
    assert config.certificate is not None and config.certificate.words == words == found["words"]
    pipe = open_pipeline("latte-digits", num_inference_steps=STEPS)
    with fc.attach(pipe.pipe, path) as session:
        pipe.pipe("a red seven moving left", **pipe.call)
        assert session.summary().endswith(f"; {words}")
        session.use(fc.NoCache(sites="denoiser"))
        assert "misses" not in session.summary()
    said = run("generate", "latte-digits", "a red one moving up", "--config", path, "--steps", STEPS, "--out", tmp_path)
    assert words in said.stdout


def test_of_several_the_fastest_that_passes_and_a_failure_ends_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slowest is tested first, wherever it stands in the command; a miss of a faster one stops before it."""
    files = [tuned(tmp_path / f"{n}.json", tuple(range(n))) for n in (1, 2, 3)]
    monkeypatch.setattr(certifying, "misses", lambda budget, value: value["psnr"] < 90)  # only all steps are exact
    found = json.loads(certify(tmp_path, *files).stdout)
    assert found["file"] == str(files[2]) and found["misses"] == {str(files[2]): 0, str(files[1]): 4, str(files[0]): 4}
    assert fc.load(files[0]).certificate is None


def test_of_several_that_pass_the_fastest_gets_the_certificate(tmp_path: Path) -> None:
    files = [tuned(tmp_path / f"{n}.json", tuple(range(n))) for n in (2, 1, 3)]
    found = json.loads(certify(tmp_path, *files).stdout)
    assert found["file"] == found["certified"] == str(files[1])
    certified = [fc.load(path).certificate is not None for path in files]  # type: ignore[union-attr]
    assert certified == [False, True, False] and set(found["misses"].values()) == {0}


def test_it_resumes_without_running_anything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1))
    runs: list[Any] = []
    generate = Setting.generate
    monkeypatch.setattr(Setting, "generate", lambda self, case: runs.append(case) or generate(self, case))
    first = certify(tmp_path, path)
    assert first.exit_code == 0 and len(runs) == 2 * 4 + 1  # uncached and cached, and one to warm up
    again = certify(tmp_path, path)
    assert again.exit_code == 0 and len(runs) == 9
    assert json.loads(again.stdout) == json.loads(first.stdout)
    prompts = [case.prompt for case in runs]
    assert "a red seven moving left" not in prompts  # seen


def test_more_prompts_after_a_look_are_refused(tmp_path: Path) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1))
    assert certify(tmp_path, path).exit_code == 0
    result = certify(tmp_path, path, count="6")
    assert result.exit_code == 2 and "breaks the promise" in result.stderr


def test_nothing_is_written_where_none_passes(tmp_path: Path) -> None:
    path = tuned(tmp_path / "tuned.json", (0,))
    result = certify(tmp_path, path, budget="psnr>=99")
    assert result.exit_code == 2 and "4 of 4 prompts miss psnr>=99, too many" in result.stderr
    assert fc.load(path).certificate is None


def test_a_prompt_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1))
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n a \n")
    result = certify(tmp_path, path, prompts=str(tmp_path / "prompts.txt"))
    assert result.exit_code == 2 and "prompt 4 ('a') is prompt 1 again" in result.stderr


def test_prompts_that_were_seen_are_refused(tmp_path: Path) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1), ("c", "x"))
    (tmp_path / "prompts.txt").write_text("a\nb\n  c \nd\n")
    result = certify(tmp_path, path, prompts=str(tmp_path / "prompts.txt"))
    assert result.exit_code == 2 and "prompt 3 ('c') was used when" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": "3"}, "that takes 4"),
        ({"rate": "0.05", "level": "0.95", "prompts": "FEW"}, "takes 59 prompts, found 2"),
    ],
)
def test_too_few_prompts(tmp_path: Path, options: dict[str, str], said: str) -> None:
    (tmp_path / "few.txt").write_text("a\nb\n")
    options = {key: str(tmp_path / "few.txt") if value == "FEW" else value for key, value in options.items()}
    result = certify(tmp_path, tuned(tmp_path / "tuned.json", (0, 1)), **options)
    assert result.exit_code == 2 and said in result.stderr


def test_a_recheck_on_fresh_noise(tmp_path: Path) -> None:
    from fastercache.experiments.jobs.recheck import recheck

    path = tuned(tmp_path / "tuned.json", (0, 1))
    subject: Subject = open_pipeline("latte-digits", num_inference_steps=STEPS)
    with pytest.raises(fc.ConfigUnreadable, match="no certificate"):
        recheck(subject, fc.load(path), 2, tmp_path / "recheck")
    certify(tmp_path, path)
    found = recheck(subject, fc.load(path), 2, tmp_path / "recheck")
    assert (found["misses"], found["prompts"], found["holds"]) == (0, 2, True)
    assert found["at_most"] == pytest.approx(1 - 0.025**0.5)


def test_the_captions_that_a_reference_model_brings_are_unseen_ones(tmp_path: Path) -> None:
    first = shipped_captions("latte-digits", "train")[0]
    request = certifying.request_of([tuned(tmp_path / "t.json", (0,), (first,))], None, 0.95, 0.05, None, 0)
    found = certifying.unseen("latte-digits", certifying.seen_by(request))
    assert first not in found and len(found) == 239 and request.count == 59


def test_another_size_than_the_schedule_was_made_for_is_refused(tmp_path: Path) -> None:
    """Applying it so is a warning. But a certificate in the file would be read as one for the file's own size."""
    path = tuned(tmp_path / "tuned.json", (0, 1))
    made = json.loads(path.read_text())
    made["conditions"] = {"latent": [4, 8, 8, 8], "dtype": "float32", "adapters": []}
    path.write_text(json.dumps(made))
    result = certify(tmp_path, path, call="height=64")
    assert result.exit_code == 2 and fc.load(path).certificate is None
    assert f"{path} was made for a latent of 4 x 8 x 8 x 8, this run has one of 4 x 8 x 16 x 8" in result.stderr
    assert "certify with the call it was made for" in result.stderr and not (tmp_path / "study").exists()
    assert certify(tmp_path, path).exit_code == 0


def test_a_limit_of_time_is_said_to_be_no_part_of_the_certificate(tmp_path: Path) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1))
    result = certify(tmp_path, path, budget="psnr>=1,time<=8s")
    assert result.exit_code == 0 and fc.load(path).certificate.budget == "psnr>=1"  # type: ignore[union-attr]
    assert "note: a certificate holds on any machine, so it says nothing of time<=8s" in result.stderr


def test_steps_and_guidance_are_those_of_the_file_unless_others_are_typed(tmp_path: Path) -> None:
    """The command that `plan` prints at its end works as it stands."""
    path = tuned(tmp_path / "tuned.json", (0, 1))
    words = ["generate", "latte-digits", "a red one moving up", "--config", path, "--out", tmp_path, "--json"]
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["speedup_flops"] == pytest.approx(STEPS / 2)
    steps, guidance = "this schedule was made for 3 steps, this run has 5", "this config was made for guidance scale 4"
    for others, said in (
        (("--steps", "5"), steps),
        (("--call", "num_inference_steps=5"), steps),
        (("--guidance", "2"), guidance),
    ):
        result = run(*words, *others)
        assert result.exit_code == 2 and said in result.stderr
    result = run("certify", "latte-digits", path, *LOOSE, "--study", tmp_path / "study", "--json")
    assert result.exit_code == 0, result.stderr


def prompts_tried(path: Path) -> set[str]:
    found = fc.load(path).tried
    return {text for texts in found.values() for text in texts}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are generated, in order."""
    runs: list[str] = []
    generate = Setting.generate
    monkeypatch.setattr(Setting, "generate", lambda self, case: runs.append(case.prompt) or generate(self, case))
    return runs


def test_a_lower_budget_after_a_failure_needs_other_prompts(tmp_path: Path, drawn: list[str]) -> None:
    """Whichever folder the runs go to, and also if that of the failed attempt is gone: the file knows."""
    path = tuned(tmp_path / "tuned.json", (0,))
    (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\n")
    given = {"prompts": str(tmp_path / "prompts.txt")}
    assert "4 of 4 prompts miss psnr>=99" in certify(tmp_path, path, budget="psnr>=99", **given).stderr
    drawn.clear()
    (tmp_path / "prompts.txt").write_text("e\nf\n  B \nd\n")
    lower = certify(tmp_path, path, study=str(tmp_path / "other"), **given)
    assert lower.exit_code == 2
    assert "prompt 3 ('B') was looked at when this file was certified otherwise" in lower.stderr
    assert not drawn and fc.load(path).certificate is None and not (tmp_path / "other").exists()
    (tmp_path / "prompts.txt").write_text("e\nf\ng\nh\n")
    assert certify(tmp_path, path, study=str(tmp_path / "other"), **given).exit_code == 0
    assert prompts_tried(path) == set(map(prompt_hash, "abcdefgh"))


def test_captions_that_a_certification_looked_at_are_left_out_of_the_next(tmp_path: Path, drawn: list[str]) -> None:
    path = tuned(tmp_path / "tuned.json", (0,))
    captions = certifying.unseen("latte-digits", fc.load(path).seen)
    certify(tmp_path, path, budget="psnr>=99")
    assert list(dict.fromkeys(drawn)) == captions[:4]
    drawn.clear()
    other = {"study": str(tmp_path / "other")}
    first = certify(tmp_path, path, **other)
    assert list(dict.fromkeys(drawn)) == captions[4:8] and "4 prompts left out" in first.stderr
    drawn.clear()
    again = certify(tmp_path, path, **other)  # the same command takes the same prompts, and runs nothing
    assert json.loads(again.stdout) == json.loads(first.stdout) and not drawn
    gone = certify(tmp_path, path, study=str(tmp_path / "new"))  # also where the folder of the runs is another one
    assert gone.exit_code == 0 and list(dict.fromkeys(drawn)) == captions[4:8]


def test_a_dial_knows_which_prompts_were_looked_at(tmp_path: Path) -> None:
    configs = [fc.load(tuned(tmp_path / "t.json", computed)) for computed in ((0, 1, 2), (0,))]
    path = tmp_path / "dial.json"
    fc.Dial.of(configs, [{"psnr": [90.0]}, {"psnr": [20.0]}], {"psnr": ">="}).save(path)
    result = certify(tmp_path, path, budget="psnr>=1")
    assert result.exit_code == 0, result.stderr
    dial = fc.Dial.load(path)
    captions = certifying.unseen("latte-digits", dial.seen)
    assert [set(texts) for texts in dial.tried.values()] == [set(map(prompt_hash, captions[:4]))]
    one = dial.pick(speedup=3)
    assert one.tried == dial.tried and one.certificate is not None
    assert fc.Dial.of([one], [{"psnr": [20.0]}], {"psnr": ">="}).tried == dial.tried


def test_a_file_that_cannot_be_written_is_refused_before_any_run(
    tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tuned(tmp_path / "tuned.json", (0, 1))

    def full(self: TunedConfig, where: object) -> Path:
        raise fc.ConfigUnreadable(f"{where} cannot be written: the disk is full")

    monkeypatch.setattr(TunedConfig, "save", full)
    result = certify(tmp_path, path)
    assert result.exit_code == 2 and "the disk is full" in result.stderr
    assert not drawn and not (tmp_path / "study").exists()


def test_each_certification_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = tuned(tmp_path / "one.json", (0, 1)), tuned(tmp_path / "other.json", (0, 2))
    for path in (one, other, one):
        result = run("certify", "latte-digits", str(path), *LOOSE, "--steps", str(STEPS), "--json")
        assert result.exit_code == 0, result.stderr
        name = "latte-digits" if path == one else "latte-digits-2"
        assert json.loads(result.stdout)["study"] == f"certifying/{name}"
    assert sorted(path.name for path in Path("certifying").iterdir()) == ["latte-digits", "latte-digits-2"]


def test_prompts_may_be_mappings_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DiT takes no text but class labels: planned on some, certified on others; a label that was seen is refused."""
    monkeypatch.chdir(tmp_path)
    pipe = zoo.build("dit").pipe
    subject = Subject("dit", pipe, {"num_inference_steps": 6, "guidance_scale": 3.0}, reference=False)
    prompts = [{"class_labels": [label]} for label in range(1, 7)]
    path = Path("tuned.json")
    found = planning.plan(
        subject, prompts[:1], speedups=[2], effort=0, held_out=prompts[1:2], folder=Path("plan"), out=path, show=False
    )
    config = fc.load(path)
    assert found["computed_steps"] == list(config.policy.computed) and len(config.seen) == 2  # type: ignore[attr-defined]
    assert config.guidance_scale == 3.0
    request = certifying.request_of([path], "psnr>=1", level=0.5, rate=0.3, count=None, seed=0)
    with pytest.raises(fc.ConfigUnreadable, match="was used when the schedule was searched"):
        certifying.chosen(request, prompts[1:3])
    with pytest.raises(fc.ConfigUnreadable, match="was used when the schedule was searched"):
        certifying.certify(subject, request, prompts[1:3], Path("certifying"), show=False)
    certifying.certify(subject, request, prompts[2:4], Path("certifying"), show=False)
    certified = fc.load(path)
    assert certified.certificate is not None and len(prompts_tried(path)) == 2
    with pytest.raises(fc.ConfigMismatch, match="guidance scale 3, this run has 5"):
        other = Subject("dit", pipe, subject.call | {"guidance_scale": 5.0}, reference=False)
        certifying.certify(other, request, prompts[4:6], Path("other"), show=False)


def test_a_file_that_does_not_know_yet_is_told_by_the_runs_of_the_same_certification(tmp_path: Path) -> None:
    """A copy of the file from before the certification, or one of an older version."""
    path = tuned(tmp_path / "tuned.json", (0, 1))
    before = path.read_text()
    assert certify(tmp_path, path).exit_code == 0
    known = prompts_tried(path)
    path.write_text(before)
    assert certify(tmp_path, path).exit_code == 0 and prompts_tried(path) == known and len(known) == 4


def test_a_certificate_is_not_said_of_a_run_that_it_does_not_cover(tmp_path: Path) -> None:
    """Another size than it was certified for is a warning, and then nothing is promised."""
    path = tuned(tmp_path / "tuned.json", (0, 1))
    made = json.loads(path.read_text())
    made["conditions"] = {"latent": [4, 8, 8, 8], "dtype": "float32", "adapters": []}
    path.write_text(json.dumps(made))
    assert certify(tmp_path, path).exit_code == 0
    words = ["generate", "latte-digits", "a red one moving up", "--config", path, "--out", tmp_path]
    pipe = open_pipeline("latte-digits", num_inference_steps=STEPS)
    with fc.attach(pipe.pipe, path) as session:
        for more, covered in (({}, True), ({"height": 64}, False), ({}, True)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OtherConditions)
                pipe.pipe("a red seven moving left", **pipe.call | more)
            assert ("misses psnr>=1" in session.summary()) is covered
            assert session.summary().endswith("about other conditions than this run's") is not covered
    for call, covered in (([], True), (["--call", "height=64"], False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtherConditions)
            said = run(*words, *call)
        assert said.exit_code == 0, said.stderr
        assert ("misses psnr>=1" in said.stdout) is covered
        assert ("its certificate is about other conditions" in " ".join(said.stdout.split())) is not covered
