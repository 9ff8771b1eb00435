"""The passes that `optimize` applies unless it is told others, in run order."""

from __future__ import annotations

from typing import Final

from edgewise.formats.opset import MINIMUM_OPSET
from edgewise.passes.bind_defaults import BindDefaults
from edgewise.passes.cancel_transposes import CancelTransposes
from edgewise.passes.fold_affine import FoldAffine
from edgewise.passes.fold_affine_into_next import FoldAffineIntoNext
from edgewise.passes.fold_batch_norm import FoldBatchNorm
from edgewise.passes.fold_batch_norm_into_next import FoldBatchNormIntoNext
from edgewise.passes.fold_constants import FoldConstants
from edgewise.passes.fuse_clips import FuseClips
from edgewise.passes.fuse_gelu import FuseGelu
from edgewise.passes.fuse_hard_swish import FuseHardSwish
from edgewise.passes.fuse_layer_norm import FuseLayerNorm
from edgewise.passes.fuse_matmul_add import FuseMatMulAdd
from edgewise.passes.fuse_pad import FusePad
from edgewise.passes.inline_functions import InlineFunctions
from edgewise.passes.lift_constants import LiftConstants
from edgewise.passes.merge_reshapes import MergeReshapes
from edgewise.passes.merge_slices import MergeSlices
from edgewise.passes.merge_transposes import MergeTransposes
from edgewise.passes.protocol import Pass
from edgewise.passes.raise_opset import RaiseOpset
from edgewise.passes.remove_no_ops import RemoveNoOps
from edgewise.passes.remove_unused import RemoveUnused
from edgewise.passes.replace_shortcuts import ReplaceShortcuts
from edgewise.passes.share_subexpressions import ShareSubexpressions

DEFAULT_PASSES: Final[tuple[Pass, ...]] = (
    # What hides the graph's structure goes first.
    InlineFunctions(),
    BindDefaults(),
    # Patterns have fewer spellings, and weights can be quantized per channel, from here on.
    RaiseOpset(MINIMUM_OPSET),
    RemoveUnused(),
    LiftConstants(),
    FoldConstants(),
    RemoveNoOps(),
    ShareSubexpressions(),
    # Views and copies: fewer of them, and then operators that belong together are neighbours.
    MergeReshapes(),
    MergeTransposes(),
    CancelTransposes(),
    MergeSlices(),
    ReplaceShortcuts(),
    RemoveNoOps(),
    # Patterns, while they are still spelled as their exporter spelled them.
    FuseLayerNorm(),
    FuseGelu(),
    FuseHardSwish(),
    FuseClips(),
    # Weights: backwards before forwards, and without readers that are no longer needed.
    RemoveUnused(),
    FuseMatMulAdd(),
    FoldBatchNorm(),
    FoldAffine(),
    FoldBatchNormIntoNext(),
    FoldAffineIntoNext(),
    FusePad(),
    # Constants that became equal or were merged, shapes that nothing reads any more.
    ShareSubexpressions(),
    RemoveUnused(),
)
