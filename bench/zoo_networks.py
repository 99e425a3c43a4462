"""Which networks bench.zoo runs: torchvision's classifiers, and of timm one or two of each family that is deployed."""

from __future__ import annotations

from collections.abc import Sequence

# More than 20 G multiply-adds an image or 300 M weights: minutes for each, most of them PyTorch's. Their architectures
# are there in smaller sizes.
TOO_LARGE = (
    "convnext_large",
    "regnet_x_32gf",
    "regnet_y_32gf",
    "regnet_y_128gf",
    "swin_v2_b",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "wide_resnet101_2",
)

TIMM = (
    "resnet50",
    "resnet50d",
    "resnetv2_50",
    "resnext50_32x4d",
    "seresnet50",
    "ecaresnet50d",
    "res2net50_26w_4s",
    "resnest26d",
    "regnetx_016",
    "regnety_016",
    "rexnet_100",
    "repvgg_a2",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium",
    "mnasnet_100",
    "fbnetv3_b",
    "tinynet_a",
    "ghostnet_100",
    "mixnet_s",
    "lcnet_100",
    "densenet121",
    "dpn68",
    "vgg16_bn",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v2",
    "legacy_xception",
    "dm_nfnet_f0",
    "convnext_tiny",
    "convnextv2_atto",
    "coatnet_rmlp_nano_rw_224",
    "maxvit_tiny_rw_224",
    "vit_small_patch16_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "mixer_s16_224",
    "resmlp_12_224",
    "gmlp_s16_224",
    "pit_xs_224",
    "levit_128",
    "cait_xxs24_224",
    "xcit_tiny_12_p16_224",
    "poolformer_s12",
    "edgenext_small",
    "mobilevit_s",
    "fastvit_t8",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "selecsls42b",
    "ese_vovnet19b_dw",
)

LIBRARIES = ("torchvision", "timm")


def names(library: str) -> Sequence[str]:
    """With the library before each."""
    if library == "timm":
        return [f"timm/{name}" for name in TIMM]
    from torchvision import models

    return [f"torchvision/{name}" for name in models.list_models(module=models) if name not in TOO_LARGE]
