"""What one term of a budget demands of the values over prompts, beside counting by hand."""

from __future__ import annotations

import math

import pytest

from fastercache.bounds import Bound, InvalidBudget, parts, read_bound, read_limit, statistic, wrong_direction


@pytest.mark.parametrize(
    ("text", "values", "keeps"),
    [
        ("psnr>=40", [38.0, 42.0], True),
        ("psnr>=40", [38.0, 41.9], False),
        ("lpips<=0.25", [0.0, 0.5], True),
        ("lpips<=0.25", [0.0, 0.6], False),
        ("lpips<=0", [0.0, 0.0], True),
        ("p50:psnr>=40", [0.0, 40.0, 41.0, 1.0], True),
        ("p75:psnr>=40", [0.0, 40.0, 41.0, 1.0], False),
        ("p75:lpips<=0.5", [0.9, 0.5, 0.1, 0.2], True),
        ("p75:lpips<=0.5", [0.9, 0.6, 0.1, 0.2], False),
        ("q0.5(psnr)>=40", [30.0, 40.0, 50.0, 60.0], True),
        ("q0.25(psnr)>=40", [30.0, 40.0, 50.0, 60.0], False),
        ("q0.75(lpips)<=0.5", [0.9, 0.5, 0.1, 0.2], True),
        ("q1(lpips)<=0.5", [0.9, 0.5, 0.1, 0.2], False),
        ("mean(lpips)<=0.5", [0.9, 0.1], True),
    ],
)
def test_a_term_holds_up_to_its_bound_and_no_further(text: str, values: list[float], keeps: bool) -> None:
    assert read_bound(text).holds(values) is keeps


@pytest.mark.parametrize(("name", "sign"), [("psnr", ">="), ("lpips", "<=")])
@pytest.mark.parametrize("percent", [0.5, 7, 14, 28, 29, 55, 56, 57, 58, 99.5, 100])
def test_a_share_of_a_hundred_prompts_is_counted_without_rounding_up(name: str, sign: str, percent: float) -> None:
    """7 % of 100 are 7 prompts, though 0.07 * 100 is a little more than 7 to a machine; half a prompt counts as one."""
    asked = math.ceil(percent)
    good, bad = (50.0, 10.0) if sign == ">=" else (10.0, 50.0)
    bound = read_bound(f"p{percent}:{name}{sign}30")
    assert bound.holds([good] * asked + [bad] * (100 - asked))
    assert not bound.holds([good] * (asked - 1) + [bad] * (101 - asked))
    values = [float(n) for n in range(100, 0, -1)]
    assert statistic(values, sign == ">=", quantile=percent / 100) == asked
    assert statistic(values, sign == ">=", share=percent / 100) == (101 - asked if sign == ">=" else asked)


def test_a_term_is_read_into_its_parts() -> None:
    assert read_bound(" PSNR >= 3e1 ") == Bound("psnr", ">=", 30.0, None, None, " PSNR >= 3e1 ")
    assert read_bound("q0.9(lpips)<=-.5") == Bound("lpips", "<=", -0.5, 0.9, None, "q0.9(lpips)<=-.5")
    assert read_bound("p12.5:my_metric2<=1e-3") == Bound(
        "my_metric2", "<=", 1e-3, None, 0.125, "p12.5:my_metric2<=1e-3"
    )
    assert (read_bound("q1(psnr)>=1").quantile, read_bound("p100:psnr>=1").share) == (1.0, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "q0(psnr)>=1",
        "q1.01(psnr)>=1",
        "p0:psnr>=1",
        "p100.1:psnr>=1",
        "q0.1:psnr>=1",
        "psnr=1",
        "psnr>1",
        "p1.1.1:psnr>=1",
    ],
)
def test_a_term_that_asks_of_no_or_of_more_than_all_prompts_is_refused(text: str) -> None:
    with pytest.raises(InvalidBudget):
        read_bound(text)


@pytest.mark.parametrize(
    ("text", "most", "written"),
    [
        ("cache<=1.9B", 1, "cache<=1.9B"),
        ("cache<=1B", 1, "cache<=1B"),
        ("cache<=0.001kib", 1, "cache<=0.001KiB"),
        ("cache<=1KB", 1000, "cache<=1kB"),
        ("cache<=1tib", 2**40, "cache<=1TiB"),
        ("cache<=1tb", 10**12, "cache<=1TB"),
        ("time<=0.25h", 900.0, "time<=0.25h"),
        ("time<=1.75s", 1.75, "time<=1.75s"),
        ("time<=1e-6ms", 1e-9, "time<=1e-6ms"),
    ],
)
def test_a_limit_is_in_whole_bytes_or_in_seconds(text: str, most: float, written: str) -> None:
    found = read_limit(text)
    assert found is not None and found.most == pytest.approx(most) and str(found) == written
    assert found.what == text[: text.index("<")] and isinstance(found.most, int if found.what == "cache" else float)


@pytest.mark.parametrize("text", ["cache<=0.9B", "time<=9e-7ms", "cache<=1e999B", "cache=1B", "q0.5(time)<=1s"])
def test_a_limit_that_leaves_nothing_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidBudget):
        read_limit(text)


def test_terms_are_split_at_commas_and_a_decimal_comma_is_told() -> None:
    assert parts(" psnr>=30 , cache<=2GiB,p90:ssim>=0.9") == ["psnr>=30", "cache<=2GiB", "p90:ssim>=0.9"]
    assert parts("psnr>=30,") == ["psnr>=30", ""] and parts("psnr,40") == ["psnr", "40"]
    for text in ("psnr>=30,5", "cache<=1, 5 GiB"):
        with pytest.raises(InvalidBudget, match="decimal comma"):
            parts(text)


def test_a_term_from_the_wrong_side_is_told_the_right_one() -> None:
    assert "psnr>=40.5, found" in str(wrong_direction(read_bound("psnr<=40.5"), True))
    assert "lpips<=0.1, found" in str(wrong_direction(read_bound("lpips>=0.1"), False))
