"""Transport between Gaussians that keeps the source's own geometry: fused Gromov-Wasserstein."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.geometry.gaussian_transport import inverse_root, root

_STEPS = 1000  # of L-BFGS, at most; at the default displacement it takes fewer than 100
_TOLERANCE = 1e-10


def gromov_map(source: Tensor, target: Tensor, displacement: float, isometry: float) -> Tensor:
    """Return the linear map A (r, r) that trades target mismatch for displacement and distortion.

    For covariances S of the source and Q of the target, both (r, r), A minimises

        B^2(A S A^T, Q) + (1 - t) / t E||A y - y||^2 + g E(<A y, A y'> - <y, y'>)^2 / ||S||_F^2 tr S

    over linear maps of centred source rows y, y': B is the Bures distance, t the `displacement` in
    [0, 1], g the `isometry` weight. Without the last term and with S regular the minimum is the
    displaced Bures map (1 - t) I + t T. The last term, ||S^{1/2} (A^T A - I) S^{1/2}||_F^2, is the
    Gromov-Wasserstein cost of inner products (Delon, Desolneux and Salmona 2022; fused with the
    displacement as by Vayer et al. 2019): it charges for what changes the similarities between
    texts and lets rotation go free, so that the target is entered by turning before stretching.
    At t = 1 nothing ties the rotation to the text any more: stay well below. Where the source has
    no variance A is zero, and the identity where it has none at all.
    Deterministic: L-BFGS in float64 from the identity.
    """
    identity = torch.eye(source.shape[0], dtype=source.dtype)
    scale = torch.trace(source)
    if displacement == 0 or scale <= 0:
        return identity
    source, target = source / scale, target / scale
    source_root, target_root = root(source), root(target)
    cost = (1 - displacement) / displacement
    weight = isometry / float(source.square().sum())
    # In G = A S^{1/2} the curvature is nearly even; in A it falls with the source's variance.
    moved = source_root.clone().requires_grad_()
    # Where the source has no variance there is nothing for A to move.
    within = source_root @ inverse_root(source)
    moved.register_hook(lambda gradient: gradient @ within)
    optimizer = torch.optim.LBFGS(
        [moved],
        max_iter=_STEPS,
        history_size=20,
        tolerance_grad=_TOLERANCE,
        tolerance_change=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        overlap = torch.linalg.matrix_norm(target_root @ moved, "nuc")
        mismatch = moved.square().sum() + torch.trace(target) - 2 * overlap
        moving = (moved - source_root).square().sum()
        distortion = (moved.T @ moved - source).square().sum()
        loss = mismatch + cost * moving + weight * distortion
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return moved.detach() @ inverse_root(source)
