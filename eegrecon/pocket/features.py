"""What the simulated brain computes from a picture: a retinotopic low-level code and a nonlinear shape code.

All statistics (means, spreads) come from training pictures alone. Nothing here sees the embeddings that are decoded
later: the shape code starts from another network's features, handed in as an array.
"""

from __future__ import annotations

import numpy as np

LOW_LEVEL = ("luminance", "contrast", "red_green", "blue_yellow", "edges")


def retinotopic_features(pictures: np.ndarray, grid: int) -> np.ndarray:
    """Summarise each cell of a ``grid`` × ``grid`` partition of the picture.

    Args:
        pictures: ``(n, h, w, 3)`` uint8 with h and w at least ``grid``.
        grid: cells along each side; row 0 is the upper edge, column 0 the left edge.

    Returns:
        ``(n, grid * grid, 5)`` float32, features in `LOW_LEVEL` order: mean luminance, its standard deviation, the two
        opponent colours (red - green, blue - yellow; Krauskopf et al. 1982 without the cone matrix) and the mean
        gradient magnitude, for values in [0, 1].
    """
    count, height, width, _ = pictures.shape
    rows = np.linspace(0, height, grid + 1).astype(int)
    columns = np.linspace(0, width, grid + 1).astype(int)
    out = np.empty((count, grid, grid, len(LOW_LEVEL)), np.float32)
    for start in range(0, count, 512):
        rgb = pictures[start : start + 512].astype(np.float32) / 255
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
        vertical, horizontal = np.gradient(luminance, axis=(1, 2))
        maps = (luminance, red - green, blue - (red + green) / 2, np.hypot(vertical, horizontal))
        for i in range(grid):
            for j in range(grid):
                cell = np.s_[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
                light, first, second, edge = (m[cell] for m in maps)
                means = [m.mean((1, 2)) for m in (light, first, second, edge)]
                out[start : start + 512, i, j] = np.stack([means[0], light.std((1, 2)), *means[1:]], axis=1)
    return out.reshape(count, grid * grid, len(LOW_LEVEL))


def standardise(values: np.ndarray, train_mask: np.ndarray) -> np.ndarray:
    """Give every column zero mean and unit spread over the training rows; constant columns become zero.

    Args:
        values: ``(n, d)``.
        train_mask: ``(n,)`` bool.

    Returns:
        ``(n, d)`` float32.
    """
    train = values[train_mask].astype(np.float64)
    mean, spread = train.mean(0), train.std(0)
    scaled = (values - mean) / np.where(spread > 1e-8, spread, np.inf)
    return np.asarray(scaled, dtype=np.float32)


def shape_code(
    features: np.ndarray, train_mask: np.ndarray, n_codes: int, *, hidden: int, drive: float, seed: int
) -> np.ndarray:
    """Mix a network's features into ``n_codes`` codes that are not linear in them.

    standardise → flatten the spectrum → random projection → standardise → half the units tanh(drive · x), half relu(x)
    → random projection → standardise. The projections depend on ``seed`` alone, so every subject has the same codes
    before its own mixing.

    Args:
        features: ``(n, d)`` pooled features of a network that is not the decoding target's.
        train_mask: ``(n,)`` bool, the pictures that statistics are taken from.
        n_codes: number of codes.
        hidden: units between the two projections.
        drive: how far tanh is driven into saturation; 0 would be linear.
        seed: seed of both projections.

    Returns:
        ``(n, n_codes)`` float32, zero mean and unit spread over the training pictures.
    """
    rng = np.random.default_rng([seed, 1])
    first = rng.standard_normal((features.shape[1], hidden)).astype(np.float32)
    second = rng.standard_normal((hidden, n_codes)).astype(np.float32)
    flat = flatten_spectrum(standardise(features, train_mask), train_mask, leading=60)
    units = standardise(flat @ first, train_mask)
    half = hidden // 2
    units = np.concatenate([np.tanh(drive * units[:, :half]), np.maximum(units[:, half:], 0)], axis=1)
    return standardise(standardise(units, train_mask) @ second, train_mask)


def flatten_spectrum(values: np.ndarray, train_mask: np.ndarray, leading: int) -> np.ndarray:
    """Give the leading principal axes more equal weight and fade out those after about ``leading`` of them.

    Axis k is weighted by ``l_k ** -1/4 * l_k / (l_k + l_leading)`` with the training covariance's eigenvalues l. The
    result stays in the features' own coordinates (a function of the covariance matrix), so that neither signs nor
    rotations among nearly equal eigenvalues, which differ between machines, can change it.

    Args:
        values: ``(n, d)``, zero mean over the training rows.
        train_mask: ``(n,)`` bool.
        leading: about how many axes keep their weight.
    """
    train = values[train_mask].astype(np.float64)
    found, axes = np.linalg.eigh(train.T @ train / len(train))
    found = np.maximum(found, 1e-6 * found[-1])
    pivot = found[-min(leading, len(found))]
    weights = found**-0.25 * found / (found + pivot)
    return np.asarray(values @ ((axes * weights) @ axes.T).astype(np.float32))


def local_code(features: np.ndarray, train_mask: np.ndarray, n_units: int, *, seed: int) -> np.ndarray:
    """Mix each cell's standardised features into ``n_units`` tanh units, the same mixture in every cell.

    Args:
        features: ``(n, cells, f)`` float32.
        train_mask: ``(n,)`` bool.
        n_units: units a cell.
        seed: decides the mixture.

    Returns:
        ``(n, cells, n_units)`` float32, zero mean and unit spread over the training pictures.
    """
    mixture = np.random.default_rng([seed, 2]).standard_normal((features.shape[-1], n_units))
    mixture /= np.linalg.norm(mixture, axis=0)
    units = np.tanh(1.5 * features @ mixture.astype(np.float32))
    return standardise(units.reshape(len(units), -1), train_mask).reshape(units.shape)
