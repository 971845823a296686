"""The metrics of a method on held-out pairs: target side, source side and retrieval.

Inputs are unit rows; `image`, `text` and `substitute` hold the same n pairs in the same order.
Nearly every metric is a mean over pairs, so the bootstrap over pairs is a weighted mean of what
each pair contributes; neighbourhoods and ranks stay those of the whole set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.geometry.bootstrap import Resamples, percentile_interval
from pipeline.geometry.moments import Moments
from pipeline.geometry.neighbours import NEIGHBOURS, NeighbourIndex, Neighbours, match_ranks

_SIMILARITY_PAIRS = 200_000
_SIMILARITY_BLOCK = 10_000
_RITZ_VECTORS = 64
_DEPTHS = (1, 5, 10)
_TINY = 1e-12  # added to every variance: a residual of rounding errors counts as isotropic


@dataclass(frozen=True)
class SimilarityPairs:
    """Random pairs of rows i != j, `first` and `second` (p,), the same for every method."""

    first: Tensor
    second: Tensor

    @classmethod
    def draw(cls, rows: int, generator: torch.Generator) -> SimilarityPairs:
        """Return 200,000 seeded pairs of `rows` rows."""
        first = torch.randint(rows, (_SIMILARITY_PAIRS,), generator=generator)
        shift = torch.randint(1, rows, (_SIMILARITY_PAIRS,), generator=generator)
        return cls(first, (first + shift) % rows)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Return <e_i, e_j> of embeddings (n, d), shape (p,), float64."""
        blocks = zip(
            self.first.split(_SIMILARITY_BLOCK), self.second.split(_SIMILARITY_BLOCK), strict=True
        )
        return torch.cat([_row_products(embeddings[a], embeddings[b]) for a, b in blocks])


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=1, dtype=torch.float64)


def mixing_reference(rows: int, neighbours: int) -> tuple[Tensor, float]:
    """Return H2 of h images among k neighbours, h = 0 .. k, and its mean under random labels.

    Of 2n labels permuted at random, any k neighbours hold a hypergeometric number of images, so
    the mean over all permutations is a sum of k + 1 terms.
    """
    share = torch.arange(neighbours + 1, dtype=torch.float64) / neighbours
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / math.log(2)
    labellings = math.comb(2 * rows, neighbours)
    chances = [
        math.comb(rows, images) * math.comb(rows, neighbours - images) / labellings
        for images in range(neighbours + 1)
    ]
    return entropy, float(entropy @ torch.tensor(chances, dtype=torch.float64))


def _mixing_rows(images: Neighbours, substitutes: Neighbours, rows: int) -> Tensor:
    """Return each row's relative mixing, (n,), from its k nearest images and k nearest z."""
    count = images.similarity.shape[1]
    both = torch.cat((images.similarity, substitutes.similarity), dim=1)
    from_images = (both.topk(count, dim=1).indices < count).sum(dim=1)
    entropy, reference = mixing_reference(rows, count)
    return entropy[from_images] / reference


def local_mixing(
    image: Tensor, substitute: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return (M_Z, M_X): how far neighbourhoods mix both clouds (n, d), 1 when labels are random.

    In Q = X u Z the entropy of the share of images among a point's k nearest others is averaged
    over Z and over X, divided by its mean under random permutations of the labels.
    """
    images, substitutes = NeighbourIndex(image), NeighbourIndex(substitute)
    rows = image.shape[0]
    of_substitutes = _mixing_rows(
        images.search(substitute, neighbours), substitutes.among_themselves(neighbours), rows
    )
    of_images = _mixing_rows(
        images.among_themselves(neighbours), substitutes.search(image, neighbours), rows
    )
    return float(of_substitutes.mean()), float(of_images.mean())


def similarity_correlation(text: Tensor, substitute: Tensor, seed: int = 0) -> float:
    """Psi: correlation of <y_i, y_j> with <z_i, z_j> over random pairs i != j."""
    pairs = SimilarityPairs.draw(text.shape[0], torch.Generator().manual_seed(seed))
    return _correlation(pairs.similarities(text), pairs.similarities(substitute))


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((first, second)))[0, 1])


def neighbourhood_overlap(text: Tensor, substitute: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Omega: mean share of the k-neighbourhood in Y that is kept in Z."""
    before, after = (
        NeighbourIndex(cloud).among_themselves(neighbours) for cloud in (text, substitute)
    )
    return float(_overlap_rows(before, after).mean())


def _overlap_rows(before: Neighbours, after: Neighbours) -> Tensor:
    same = before.position.unsqueeze(2) == after.position.unsqueeze(1)
    found = before.position.unsqueeze(2) >= 0
    return (same & found).any(dim=2).to(torch.float64).mean(dim=1)


@dataclass(frozen=True)
class MethodMeasures:
    """What was measured of one method.

    `metrics` by name, their 95 % `intervals` [low, high] (empty without resamples), the normalised
    falling `spectrum` (d,) of the second moment of x - z, and the lowest `recall` of a search.
    """

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    spectrum: Tensor
    recall: float


@dataclass(frozen=True)
class PairedMeasurement:
    """What all methods share on the same n pairs: neighbours of x and y, pairs, resamples."""

    image: Tensor
    text: Tensor
    neighbours: int
    seed: int
    image_index: NeighbourIndex
    image_neighbours: Neighbours
    text_neighbours: Neighbours
    pairs: SimilarityPairs
    text_similarities: Tensor
    resamples: Resamples

    @classmethod
    def of(
        cls,
        image: Tensor,
        text: Tensor,
        neighbours: int = NEIGHBOURS,
        seed: int = 0,
        resamples: int = 0,
    ) -> PairedMeasurement:
        """Prepare measuring methods on `image` and `text` (n, d), with intervals if resampled.

        Raises:
            ValueError: when there are not more than `neighbours` pairs.
        """
        image, text = image.to(torch.float32), text.to(torch.float32)
        generator = torch.Generator().manual_seed(seed)
        pairs = SimilarityPairs.draw(image.shape[0], generator)
        image_index = NeighbourIndex(image, seed)
        return cls(
            image=image,
            text=text,
            neighbours=neighbours,
            seed=seed,
            image_index=image_index,
            image_neighbours=image_index.among_themselves(neighbours),
            text_neighbours=NeighbourIndex(text, seed).among_themselves(neighbours),
            pairs=pairs,
            text_similarities=pairs.similarities(text),
            resamples=Resamples.draw(image.shape[0], resamples, generator),
        )

    @property
    def exact(self) -> bool:
        """Whether neighbours are searched exactly."""
        return self.image_index.exact

    def measure(self, substitute: Tensor) -> MethodMeasures:
        """Measure one method's substitutes (n, d), in the order of the pairs.

        Metrics: delta_mu, m_z, m_x, a_r (residuals x - z, not centred), phi, psi, omega,
        retrieval_r1, retrieval_r5, retrieval_r10 (substitute to image) and paired_cosine.
        """
        substitute = substitute.to(self.image)
        contributions, recall = self._contributions(substitute)
        values = torch.stack(tuple(contributions.values()), dim=1)
        residual = self.image - substitute
        moments = Moments.of(residual)
        second_moment = moments.covariance + torch.outer(moments.mean, moments.mean)
        eigenvalues, vectors = torch.linalg.eigh(second_moment)
        eigenvalues = eigenvalues.clamp(min=0) + _TINY
        anisotropy = float(eigenvalues[-1] / eigenvalues.mean())
        similarities = self.pairs.similarities(substitute)
        metrics = dict(zip(contributions, values.mean(dim=0).tolist(), strict=True)) | {
            "delta_mu": float(moments.mean.norm()),
            "a_r": anisotropy,
            "psi": _correlation(self.text_similarities, similarities),
        }
        replicates: dict[str, Tensor] = {}
        if self.resamples.counts.shape[0]:
            means = self.resamples.means(values)
            similarity_pairs = torch.stack((self.text_similarities, similarities), dim=1)
            replicates = dict(zip(contributions, means.unbind(dim=1), strict=True)) | {
                "delta_mu": _mean_norms(residual, moments, self.resamples),
                "a_r": _anisotropies(residual, vectors, anisotropy, self.resamples),
                "psi": self.resamples.correlations(
                    similarity_pairs, self.pairs.first, self.pairs.second
                ),
            }
        return MethodMeasures(
            metrics={name: metrics[name] for name in _ORDER},
            intervals={
                name: percentile_interval(replicates[name]) for name in _ORDER if replicates
            },
            spectrum=eigenvalues.flip(0) / eigenvalues.sum(),
            recall=recall,
        )

    def _contributions(self, substitute: Tensor) -> tuple[dict[str, Tensor], float]:
        """Return what each pair adds to every metric that is a mean, (n,), and the recall."""
        rows, index = self.image.shape[0], NeighbourIndex(substitute, self.seed)
        own = index.among_themselves(self.neighbours)
        images = self.image_index.search(substitute, self.neighbours)
        substitutes = index.search(self.image, self.neighbours)
        ranks = match_ranks(substitute, self.image)
        searches = (self.image_neighbours, self.text_neighbours, own, images, substitutes)
        contributions = {
            "m_z": _mixing_rows(images, own, rows),
            "m_x": _mixing_rows(self.image_neighbours, substitutes, rows),
            "phi": _row_products(self.text, substitute),
            "omega": _overlap_rows(self.text_neighbours, own),
            "paired_cosine": _row_products(self.image, substitute),
        } | {f"retrieval_r{depth}": (ranks < depth).to(torch.float64) for depth in _DEPTHS}
        return contributions, min(search.recall for search in searches)


_ORDER = (
    "delta_mu",
    "m_z",
    "m_x",
    "a_r",
    "phi",
    "psi",
    "omega",
    *(f"retrieval_r{depth}" for depth in _DEPTHS),
    "paired_cosine",
)


def _mean_norms(residual: Tensor, moments: Moments, resamples: Resamples) -> Tensor:
    """Return delta_mu under each resample, (b,).

    Resampling adds tr Cov(x - z) / n to the squared norm on average; taken off, since the interval
    would otherwise lie above a small delta_mu.
    """
    squares = resamples.means(residual).to(torch.float64).square().sum(dim=1)
    noise = torch.trace(moments.covariance) / moments.count
    return (squares - noise).clamp(min=0).sqrt()


def _anisotropies(
    residual: Tensor, vectors: Tensor, anisotropy: float, resamples: Resamples
) -> Tensor:
    """Return A_r under each resample, (b,), about that of the whole set.

    The largest eigenvalue is the more overestimated the fewer rows are distinct, so the mean
    excess of the resamples is taken off.
    """
    replicates = ritz_anisotropies(residual, vectors, resamples)
    return replicates - replicates.mean() + anisotropy


def ritz_anisotropies(residual: Tensor, vectors: Tensor, resamples: Resamples) -> Tensor:
    """Return A_r of residuals (n, d) under each resample, (b,), by Rayleigh-Ritz.

    A resample turns the leading eigenvector within the top eigenvectors of the whole set, columns
    of `vectors` (d, d) in rising order; so 64 of them hold it, and a 64 x 64 problem finds it.
    """
    reduced = residual @ vectors[:, -_RITZ_VECTORS:].to(residual.dtype)
    largest = torch.linalg.eigvalsh(resamples.second_moments(reduced).to(torch.float64))[:, -1]
    squares = _row_products(residual, residual)
    traces = resamples.means(squares.unsqueeze(1)).squeeze(1)
    return (largest + _TINY) / (traces / residual.shape[1] + _TINY)


def alignment_metrics(
    image: Tensor,
    text: Tensor,
    substitute: Tensor,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> dict[str, float]:
    """Return every metric of one method on n held-out pairs, all inputs (n, d) unit rows.

    See `PairedMeasurement.measure` for the keys, and use it where several methods are measured.
    """
    return PairedMeasurement.of(image, text, neighbours, seed).measure(substitute).metrics
