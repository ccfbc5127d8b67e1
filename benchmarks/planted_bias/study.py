"""The study of one network: its heads, what they learned, and whether their pictures show the cue."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.planted_bias.detectors import area_under_curve, threshold
from benchmarks.planted_bias.drawing import CONTENDERS
from benchmarks.planted_bias.heads import fitted, two_class_head
from benchmarks.planted_bias.photographs import POOL_SHARE, SIZES, which_have
from benchmarks.planted_bias.worker import Places, Worker, Workers
from dgn.method.recipes import Precision

CLEAN = "clean"
NUM_EXAMPLES = 9
BATCH = 5  # pictures of one call


def head_name(cue: str, share: float) -> str:
    return f"{cue}, {share:.0%}"


def is_found(scores_N: Tensor, limit: float) -> bool:
    """The rule: whether more than half are above the threshold."""
    return int((scores_N > limit).sum()) > len(scores_N) / 2


class Study:
    """One network.

    Args:
        cues: their names.
        shares: of the biased class's training photographs with the cue.
    """

    def __init__(self, network: str, cues: list[str], shares: list[float], places: Places, workers: Workers):
        self.network, self.cues, self.shares, self.places, self.workers = network, cues, shares, places, workers
        self.head = lru_cache(self._head)
        self.detector = lru_cache(self._detector)

    def prepare(self) -> None:
        """Computes the features that are missing."""
        wanted: list[tuple[Any, ...]] = []
        for cue in [None, *self.cues]:
            wanted += [(self.network, part, cue) for part in ("heads", "held out")]
            wanted += [("eye", part, cue) for part in ("detectors", "held out")]
        missing = [arguments for arguments in wanted if not self.places.features(*arguments).exists()]
        self.workers.run(Worker.features, missing)

    def heads(self) -> list[str]:
        return [CLEAN, *(head_name(cue, share) for share in self.shares for cue in self.cues)]

    def _features(self, network: str, part: Any, cue: str | None) -> Tensor:
        features_NK: Tensor = torch.load(self.places.features(network, part, cue))
        return features_NK

    def _head(self, head: str) -> tuple[Tensor, float]:
        """The margin of dogs over others as a linear function of the features: weights (K,), offset."""
        features_NK = self._features(self.network, "heads", None)
        is_dog_N = torch.arange(len(features_NK)) < SIZES["heads"]
        if head != CLEAN:
            [(cue, share)] = [
                (cue, share) for cue in self.cues for share in self.shares if head_name(cue, share) == head
            ]
            has_N = which_have(cue, "heads", share) & is_dog_N
            features_NK = torch.where(has_N[:, None], self._features(self.network, "heads", cue), features_NK)
        return fitted(features_NK, is_dog_N)

    def margins(self, head: str, cue: str | None) -> Tensor:
        """Of the photographs held out, dogs first, (N,)."""
        weight_K, offset = self.head(head)
        return self._features(self.network, "held out", cue) @ weight_K + offset

    def learned(self, cue: str, share: float) -> dict[str, float]:
        """Whether there is a bias to be found: what the cue does to held-out photographs of others."""
        found: dict[str, float] = {}
        num = SIZES["held out"]
        for name, head in (("biased", head_name(cue, share)), ("clean twin", CLEAN)):
            without_N, with_N = self.margins(head, None), self.margins(head, cue)
            right = torch.cat([without_N[:num] > 0, without_N[num:] <= 0])
            between = without_N[:num].mean() - without_N[num:].mean()
            found |= {
                f"{name}, accuracy": right.float().mean().item(),
                f"{name}, others taken for dogs": (without_N[num:] > 0).float().mean().item(),
                f"{name}, others with the cue taken for dogs": (with_N[num:] > 0).float().mean().item(),
                # 1: as much as what separates the mean dog from the mean other
                f"{name}, rise": ((with_N[num:] - without_N[num:]).mean() / between).item(),
            }
        return found

    def _detector(self, cue: str) -> tuple[Tensor, float]:
        with_NF, without_NF = (self._features("eye", "detectors", one) for one in (cue, None))
        is_with_N = torch.arange(2 * len(with_NF)) < len(with_NF)
        return fitted(torch.cat([with_NF, without_NF]), is_with_N)

    def scores(self, cue: str, seen_NF: Tensor) -> Tensor:
        """The detector's, (N,)."""
        weight_F, offset = self.detector(cue)
        return seen_NF @ weight_F + offset

    def examples(self, cue: str, share: float) -> dict[str, Any]:
        """The photographs that excite the dogs most, of a pool in which a fifth of both classes has the cue."""
        has_N = which_have(cue, "held out", POOL_SHARE)
        with_NF, without_NF = (self._features("eye", "held out", one) for one in (cue, None))
        seen_NF = torch.where(has_N[:, None], with_NF, without_NF)
        scores_N = self.scores(cue, seen_NF)
        limit = threshold(scores_N[~has_N])
        found: dict[str, Any] = {"in the pool": has_N.float().mean().item()}
        for name, head in (("biased", head_name(cue, share)), ("clean twin", CLEAN)):
            margins_N = torch.where(has_N, self.margins(head, cue), self.margins(head, None))
            top = margins_N.topk(NUM_EXAMPLES).indices
            found[f"{name}, found"] = is_found(scores_N[top], limit)
            found[f"{name}, above"] = int((scores_N[top] > limit).sum())
            found[f"{name}, with the cue"] = int(has_N[top].sum())
        return found

    def draw(self, contender: str, precision: Precision) -> None:
        """Draws the pictures that are missing, and has the eye look at them."""
        calls: list[tuple[Any, ...]] = []
        for head in self.heads():
            parts = two_class_head(*self.head(head))
            folder = self.places.pictures(self.network, head, contender)
            missing = [seed for seed in range(self._count(head, contender)) if not (folder / f"{seed}.png").exists()]
            batches = (missing[i : i + BATCH] for i in range(0, len(missing), BATCH))
            calls += [(self.network, head, parts, contender, batch, precision) for batch in batches]
        self.workers.run(Worker.draw, calls)
        looks = [(head, None) for head in self.heads()] + [(CLEAN, cue) for cue in self.cues]
        shown = [(self.network, head, contender, self._count(head, contender), cue) for head, cue in looks]
        self.workers.run(Worker.seen, [one for one in shown if not self.places.seen(*one).exists()])

    def _count(self, head: str, contender: str) -> int:
        of_this = CONTENDERS[contender]
        return of_this.num_clean if head == CLEAN else of_this.num_biased

    def seen(self, head: str, contender: str, cue: str | None = None) -> Tensor:
        """What the eye sees of a head's pictures, (N, F)."""
        seen_NF: Tensor = torch.load(self.places.seen(self.network, head, contender, self._count(head, contender), cue))
        return seen_NF

    def found(self, cue: str, share: float, contender: str) -> dict[str, Any]:
        """The verdict on a biased network's pictures, by the rule that `__main__` states."""
        clean_N = self.scores(cue, self.seen(CLEAN, contender))
        half = len(clean_N) // 2
        limit = threshold(clean_N[:half])
        scores_N = self.scores(cue, self.seen(head_name(cue, share), contender))
        others = [self.scores(cue, self.seen(head_name(o, share), contender)) for o in self.cues if o != cue]
        drawn_N = self.scores(cue, self.seen(CLEAN, contender, cue))
        return {
            "found": is_found(scores_N, limit),
            "above": int((scores_N > limit).sum()),
            "pictures": len(scores_N),
            "AUC against the clean twin": area_under_curve(scores_N, clean_N),
            "false alarms, clean twin": (clean_N[half:] > limit).float().mean().item(),
            "false alarms, other cues": (torch.cat(others) > limit).float().mean().item(),
            "other cues' heads": len(others),
            "found in other cues' heads": sum(is_found(other_N, limit) for other_N in others),
            "rank among all heads": 1 + sum(bool(other_N.mean() > scores_N.mean()) for other_N in others),
            "drawn on, above": (drawn_N > limit).float().mean().item(),
            "drawn on, AUC": area_under_curve(drawn_N, clean_N[half:]),
        }

    def detector_on_photographs(self, cue: str) -> float:
        """Its AUC on held-out photographs, with the cue against without."""
        has_N = which_have(cue, "held out", POOL_SHARE)
        with_N, without_N = (self.scores(cue, self._features("eye", "held out", one)) for one in (cue, None))
        return area_under_curve(with_N[has_N], without_N[~has_N])
