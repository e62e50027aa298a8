"""The names of features: one for all spellings of libvmaf, and how one order of names is put into another.

libvmaf writes a feature as `integer_adm2` in its logs (fixed point), as `adm2` from its float extractors, and as
`VMAF_integer_feature_adm2_score` or `VMAF_feature_adm2_score` in older logs; `float_ssim` is `ssim`. With an enhancement gain
limit (the NEG models) it appends `_egl_1`: that is another feature. Statistics over frames have theirs behind the name.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

STATISTICS = ("mean", "std", "min", "max", "median", "harmonic_mean", "p05", "p10", "p25", "p50", "p75", "p90", "p95")
"""What may stand behind a feature's name: its pooling over frames."""

_OLD = re.compile(r"VMAF_(?:integer_)?feature_(\w+?)_score(?=_|$)")
_KNOWN = re.compile(
    r"(?:adm[23]?|aim|adm_(?:scale[0-3]|num|den)|adm_(?:num|den)_scale[0-3]"
    r"|vif|vif_(?:scale[0-3]|num|den)|vif_(?:num|den)_scale[0-3]|motion[23]?|motion_sad"
    r"|a?psnr_(?:y|cb|cr)|psnr|mse_(?:y|cb|cr)|anpsnr|ansnr|psnr_hvs(?:_y|_cb|_cr)?|(?:ms_)?ssim(?:_[lcs])?(?:_scale[0-4])?"
    r"|ciede2000|cambi(?:_source|_full_reference)?|ssimulacra2|lpips|speed_temporal|speed_chroma(?:_u|_v|_uv)?)"
    rf"(?:_egl_[0-9.]+)?(?:_(?:{'|'.join(STATISTICS)}))?"
)
_LISTED = 8


class NamesError(ValueError):
    """Features with other names than those that are wanted; the message says what is missing and what is too much."""


@functools.lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """The one name of a feature, given any of libvmaf's spellings of it; another name stays as it is.

    >>> canonical("integer_adm2"), canonical("VMAF_integer_feature_vif_scale0_score"), canonical("integer_adm2_egl_1_mean")
    ('adm2', 'vif_scale0', 'adm2_egl_1_mean')
    """
    name = name.strip()
    bare = _OLD.sub(r"\1", name)
    bare = bare.removeprefix("integer_").removeprefix("float_")
    return bare if _KNOWN.fullmatch(bare) else name


def is_feature(name: str) -> bool:
    """Whether a name is that of a feature of libvmaf, in any spelling, or of its statistic over frames."""
    return _KNOWN.fullmatch(canonical(name)) is not None


def name_of(names: Sequence[str], place: int) -> str:
    """What to call the feature at a place, whether or not features have names."""
    return names[place] if names else f"features[{place}]"


def repeated(names: Sequence[str]) -> str:
    """The names that are there more than once, as a list in words; empty if there are none."""
    return _listed([name for name, count in Counter(names).items() if count > 1])


def in_order(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """For each name wanted, its place among `names`, which have to be the same ones in any order.

    Raises NamesError saying which are missing, too many, or there more than once.
    """
    places = {name: place for place, name in enumerate(names)}
    if len(places) == len(names) == len(wanted):
        try:
            return [places[name] for name in wanted]
        except KeyError:
            pass
    found = []
    if missing := [name for name in wanted if name not in places]:
        found.append(f"missing: {_listed(missing)}")
    if extra := [name for name in places if name not in {*wanted}]:
        found.append(f"not known: {_listed(extra)}")
    if twice := repeated(names):
        found.append(f"more than once: {twice}")
    raise NamesError("; ".join(found))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:64] for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
