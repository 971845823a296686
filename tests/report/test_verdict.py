"""The sentence on top: winners by the numbers, ties by the intervals, controls never."""

from __future__ import annotations

from typing import Any

from pipeline.report.verdict import verdict


def measured(
    rows: dict[str, tuple[float, float, float, float]], spread: float | None = 0.01
) -> dict[str, Any]:
    """Return metrics of methods (m_z, m_x, omega, retrieval_r1), intervals that far either way."""
    keys = ("m_z", "m_x", "omega", "retrieval_r1")
    methods = {
        name: {**dict(zip(keys, row, strict=True)), "psi": row[2]} for name, row in rows.items()
    }
    metrics: dict[str, Any] = {"methods": methods}
    if spread is not None:
        metrics["intervals"] = {
            name: {key: [value - spread, value + spread] for key, value in values.items()}
            for name, values in methods.items()
        }
    return metrics


def test_each_winner_is_named_where_it_wins():
    sentence = verdict(
        measured(
            {
                "bures-subspace": (0.95, 0.90, 0.60, 0.30),
                "anisoalign": (0.80, 0.70, 0.88, 0.50),
                "realign": (0.70, 0.60, 0.95, 0.40),
            }
        )
    )
    assert sentence == (
        "Bures on subspace mixes best with the images (M_Z 0.950, M_X 0.900); "
        "among those that keep 90 % or more of the best Ω, AnisoAlign does "
        "(M_Z 0.800, M_X 0.700); "
        "ReAlign keeps most of the texts' geometry (Ω 0.950, Ψ 0.950); "
        "AnisoAlign finds the paired image most often (R@1 0.500)."
    )


def test_no_second_mixing_winner_when_the_first_keeps_enough():
    sentence = verdict(
        measured({"anisoalign": (0.8, 0.7, 0.88, 0.5), "realign": (0.7, 0.6, 0.95, 0.4)})
    )
    assert "among those" not in sentence
    assert sentence.startswith("AnisoAlign mixes best with the images")


def test_mixing_on_one_side_alone_does_not_win():
    sentence = verdict(measured({"c3": (0.99, 0.02, 0.9, 0.4), "realign": (0.5, 0.5, 0.9, 0.3)}))
    assert sentence.startswith("ReAlign mixes best")


def test_overlapping_intervals_tie():
    rows = {
        "centroid": (0.75, 0.60, 0.900, 0.41),
        "realign": (0.74, 0.61, 0.905, 0.42),
        "c3": (0.20, 0.10, 0.500, 0.20),
    }
    assert "ReAlign and Centroid tie for keeping most of the texts' geometry" in verdict(
        measured(rows, spread=0.01)
    )
    assert "ReAlign keeps most of the texts' geometry" in verdict(measured(rows, spread=0.001))


def test_all_tie():
    sentence = verdict(
        measured({"centroid": (0.5, 0.5, 0.9, 0.4), "realign": (0.5, 0.5, 0.9, 0.4)})
    )
    assert sentence.startswith("All 2 tie for the best mixing with the images (M_Z 0.500")


def test_many_ties_are_counted_and_variants_stay_apart():
    names = ("anisoalign-init", "anisoalign", "centroid", "realign", "unicorn")
    rows = dict.fromkeys(names, (0.5, 0.5, 0.9, 0.4))
    sentence = verdict(measured({**rows, "c3": (0.1, 0.1, 0.1, 0.1)}))
    assert sentence.startswith("AnisoAlign (init only), AnisoAlign, Centroid and 2 others tie for")


def test_without_intervals_three_digits_decide_and_the_reader_is_warned():
    rows = {"centroid": (0.7501, 0.6, 0.9, 0.4), "realign": (0.7503, 0.6, 0.8, 0.3)}
    sentence = verdict(measured(rows, spread=None))
    assert sentence.startswith("All 2 tie for the best mixing")
    assert "Centroid keeps most of the texts' geometry" in sentence
    assert sentence.endswith("(no intervals were measured, so a small lead may be chance).")


def test_controls_never_win():
    rows = {
        "identity": (0.0, 0.0, 1.0, 0.9),
        "permuted": (1.0, 1.0, 0.0, 0.0),
        "oracle": (1.0, 1.0, 1.0, 1.0),
    }
    assert verdict(measured(rows)) == "Only controls were measured, so no method wins."
    alone = verdict(measured({**rows, "realign": (0.5, 0.5, 0.5, 0.5)}))
    assert alone.startswith("ReAlign (M_Z 0.500")
    both = verdict(measured({**rows, "realign": (0.5, 0.5, 0.5, 0.5), "c3": (0.2, 0.1, 0.3, 0.1)}))
    assert not any(name in both for name in ("Text", "Permuted", "Oracle"))


def test_what_could_not_be_measured_never_wins():
    nothing = float("nan")
    metrics = measured({"c3": (nothing, nothing, nothing, 0.1), "realign": (0.5, 0.5, 0.5, 0.4)})
    sentence = verdict(metrics)
    assert sentence.startswith("ReAlign mixes best")
    assert "C3" not in sentence
    for metric in ("m_z", "m_x", "omega", "psi"):
        metrics["methods"]["c3"][metric] = None
        metrics["intervals"]["c3"][metric] = [None, None]
    assert verdict(metrics) == sentence


def test_a_winner_may_lack_a_figure_beside_it():
    metrics = measured({"c3": (0.1, 0.1, 0.9, 0.1), "realign": (0.5, 0.5, 0.5, 0.4)})
    metrics["methods"]["c3"]["psi"] = None
    assert "C3 keeps most of the texts' geometry (Ω 0.900, Ψ –)" in verdict(metrics)
