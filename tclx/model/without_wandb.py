"""timm, imported so that it does not find wandb: a helper of its training script, unused here, would import that, too.

wandb costs half a second and 80 MB in every process of a run, and belongs to the one process that uploads. Whoever needs timm
takes it from here.
"""

from __future__ import annotations

import sys

_known = sys.modules.get("wandb")
if _known is None:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # the import system's word for: there is no such module
try:
    import timm
    from timm.models.vision_transformer import VisionTransformer
finally:
    if _known is None:
        del sys.modules["wandb"]

__all__ = ["VisionTransformer", "timm"]
