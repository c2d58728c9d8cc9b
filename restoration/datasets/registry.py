"""The public sets of the field: where their files lie, how many they are, how they are measured.

`SETS` is the one table; docs/data.md has it as `restoration.datasets.opening.as_markdown` writes it. Counts are those
of the published downloads. Nothing is downloaded: a user gives the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from restoration.datasets.layouts import SCENE_SIZE, Among, FirstDigit, Folders, Listed, Loose, Scenes, Source
from restoration.datasets.matching import Match

Task = Literal["low light", "deraining", "motion deblurring", "defocus deblurring"]
NOT_STATED = "not known here; ask its authors"


@dataclass(frozen=True)
class Layout:
    """One way in which a set lies on disks; `splits`: name of the split -> its files."""

    name: str
    splits: Mapping[str, Source]


@dataclass(frozen=True)
class PublicSet:
    """A set of the field.

    Attributes:
        name: in `data.set` and on the command line.
        title: as papers call it.
        protocol: by which PSNR and SSIM are published; None of pictures without originals.
        degradation: a kind of `restoration.degradations`, by which stand-ins are made.
        licence: of the pictures, as far as their authors say.
        source: where they come from, in words.
        layouts: in the order they are looked for.
        rules: what one has to know of splits and pairs.
        per_scene: papers report the mean of the scenes' means, too.
    """

    name: str
    title: str
    task: Task
    protocol: str | None
    degradation: Literal["rain", "motion_blur", "defocus", "low_light"]
    licence: str
    source: str
    layouts: tuple[Layout, ...]
    rules: str = ""
    per_scene: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split for layout in self.layouts for split in layout.splits))

    @property
    def has_originals(self) -> bool:
        return self.protocol is not None

    def published(self, split: str) -> int | None:
        """Pairs of that split as its first layout that knows says."""
        return next((s.pairs for layout in self.layouts if (s := layout.splits.get(split)) and s.pairs), None)


def _lol(above: str, train: int, test: int, names: tuple[str, str], match: Match) -> dict[str, Source]:
    return {
        "train": Folders("Train/Low", "Train/Normal", above, train, match, names=names),
        "test": Folders("Test/Low", "Test/Normal", above, test, match, names=names),
    }


def _derain(name: str, folder: str, pairs: int, names: str, rules: str = "") -> PublicSet:
    """Trained on Rain13K, as the field does."""
    layout = {
        "train": Folders("Rain13K/input", "Rain13K/target", "train", 13_711, names=("{}.jpg", "{}.jpg")),
        "test": Folders("input", "target", f"test/{folder}", pairs, names=(names, names)),
    }
    return PublicSet(
        name=name,
        title=folder,
        task="deraining",
        protocol="derain_y",
        degradation="rain",
        licence=NOT_STATED,
        source="in the test archive of Restormer and MPRNet",
        layouts=(Layout("restormer", layout),),
        rules=rules,
    )


_GOPRO_TRAIN = {
    "train": Folders("input_crops", "target_crops", "train/GoPro", names=("{:06d}-1.png", "{:06d}-1.png")),
}


def _realblur(letter: Literal["J", "R"]) -> PublicSet:
    filtered = "" if letter == "J" else "BM3D_"
    inside = f"RealBlur-{letter}_{filtered}ECC_IMCORR_centroid_itensity_ref"
    aliases = (("scene244", "scene244_reflect"),)

    def listed(split: str, pairs: int, scenes: tuple[str, ...]) -> Listed:
        return Listed(f"RealBlur_{letter}_{split}_list.txt", inside, pairs, "RealBlur", aliases, scenes)

    return PublicSet(
        name=f"realblur_{letter.lower()}",
        title=f"RealBlur-{letter}",
        task="motion deblurring",
        protocol="realblur_ecc",
        degradation="motion_blur",
        licence="CC BY 4.0",
        source="the RealBlur project's archive with its lists, or the test archive of Restormer",
        layouts=(
            Layout(
                "original",
                {
                    "train": listed("train", 3758, ("scene001", "scene002")),
                    "test": listed("test", 980, ("scene003", "scene244")),
                },
            ),
            Layout(
                "restormer",
                {
                    "test": Folders(
                        "input", "target", f"test/RealBlur_{letter}", 980, names=("scene003_{}.png", "scene003_{}.png")
                    )
                },
            ),
        ),
        rules="Lists give the pairs, original first; results are aligned to the original before they are measured",
        per_scene=True,
    )


def _dpdd(name: str, dual: bool) -> PublicSet:
    bits: Literal[8, 16] = 16 if dual else 8

    def original(split: str, pairs: int, only: str | None = None) -> Folders:
        lq, right = (f"{split}_l/source", f"{split}_r/source") if dual else (f"{split}_c/source", None)
        names = ("1P0A{:04d}_L.png" if dual else "1P0A{:04d}.png", "1P0A{:04d}.png")
        above = "dd_dp_dataset_canon"
        return Folders(lq, f"{split}_c/target", above, pairs, "sorted", right, bits, only, names, gap=1)

    def restormer(pairs: int, only: str | None = None) -> Folders:
        lq, right = ("inputL", "inputR") if dual else ("inputC", None)
        return Folders(lq, "target", "test/DPDD", pairs, "sorted", right, bits, only, ("1P0A{:04d}.png",) * 2)

    lq, right = ("inputL_crops", "inputR_crops") if dual else ("inputC_crops", None)
    crops = Folders(lq, "target_crops", "train/DPDD", None, "stem", right, bits, names=("{:06d}.png",) * 2)
    return PublicSet(
        name=name,
        title="DPDD, dual" if dual else "DPDD, single",
        task="defocus deblurring",
        protocol=f"dpdd_float_{bits}",
        degradation="defocus",
        licence="code MIT; of the pictures none stated",
        source="the dual-pixel defocus project's archive (also IFAN's), or the archives of Restormer",
        layouts=(
            Layout(
                "original",
                {
                    "train": original("train", 350),
                    "val": original("val", 74),
                    "test": original("test", 76),
                    "test/indoor": original("test", 37, "indoor"),
                    "test/outdoor": original("test", 39, "outdoor"),
                },
            ),
            Layout(
                "restormer",
                {
                    "train": crops,
                    "test": restormer(76),
                    "test/indoor": restormer(37, "indoor"),
                    "test/outdoor": restormer(39, "outdoor"),
                },
            ),
        ),
        rules=("Left and right views in 16 bits, of which a model sees the mean" if dual else "16 bits, read as 8")
        + "; pairs by order; indoor and outdoor by lists that only Restormer's download has, "
        "`indoor_labels.npy` and `outdoor_labels.npy` (or `indoor.txt`, a name a line)",
    )


_SMID_TEST = (
    *(7, 9, 10, 12, 13, 20, 36, 37, 39, 47, 48, 49, 50, 51, 52, 65, 66, 75, 76, 78, 83, 88, 91, 92, 99),
    *(103, 104, 105, 106, 107, 129, 139, 145, 147, 151, 153, 154, 157, 166, 167, 169, 170, 172, 175, 177),
    *(180, 181, 191, 196),
)
SMID_TEST = tuple(f"{number:04d}" for number in _SMID_TEST)
SID_SHIFTED = ("10034", "10045", "10172")  # whose originals are shifted, by the authors' own note


def _sid(chosen: FirstDigit, pairs: int | None, numbers: tuple[str, ...], leave_out: tuple[str, ...] = ()) -> Scenes:
    return Scenes("short_sid2", "long_sid2", chosen, "SID", pairs, leave_out=leave_out, numbers=numbers)


def _smid(name: str, frames: int | None, resized: bool, rules: str) -> PublicSet:
    files = ("test_list.txt", "SMID_Long_np/test_list.txt", "SMID_Long_np/text_list.txt")

    def scenes(others: bool, pairs: int | None, numbers: tuple[str, ...], frames: int | None) -> Scenes:
        return Scenes(
            lq="SMID_LQ_np",
            gt="SMID_Long_np",
            chosen=Among(SMID_TEST, files, others),
            above="SMID",
            pairs=pairs,
            size_hw=SCENE_SIZE if resized else None,
            frames=frames,
            not_gt=(".ARW", "half"),
            numbers=numbers,
        )

    splits: dict[str, Source] = {
        "train": scenes(True, 15_763, ("0001", "0002"), None),
        "test": scenes(False, None, SMID_TEST[:2], frames),
    }
    return PublicSet(
        name=name,
        title="SMID" if frames is None else f"SMID, first {frames} frames",
        task="low light",
        protocol="lowlight_rgb",
        degradation="low_light",
        licence="code MIT; of the pictures none stated",
        source="arrays made of Seeing Motion in the Dark, as SNR-aware and Retinexformer distribute them",
        layouts=(Layout("arrays", splits),),
        rules=rules,
        per_scene=True,
    )


_EVERY = (
    PublicSet(
        name="lol_v1",
        title="LOL-v1",
        task="low light",
        protocol="lowlight_rgb",
        degradation="low_light",
        licence=NOT_STATED,
        source="the first LOL download",
        layouts=(
            Layout(
                "original",
                {
                    "train": Folders("our485/low", "our485/high", "LOLv1", 485, names=("{}.png", "{}.png")),
                    "test": Folders("eval15/low", "eval15/high", "LOLv1", 15, names=("{}.png", "{}.png")),
                },
            ),
            Layout(
                "retinexformer",
                {
                    "train": Folders("Train/input", "Train/target", "LOLv1", 485, names=("{}.png", "{}.png")),
                    "test": Folders("Test/input", "Test/target", "LOLv1", 15, names=("{}.png", "{}.png")),
                },
            ),
        ),
        rules="Its training pictures overlap the test of LOL-v2-real: take no weights of one for figures on the other",
    ),
    PublicSet(
        name="lol_v2_real",
        title="LOL-v2-real",
        task="low light",
        protocol="lowlight_rgb",
        degradation="low_light",
        licence=NOT_STATED,
        source="the LOL-v2 download, or Retinexformer's copy",
        layouts=(
            Layout("original", _lol("LOLv2/Real_captured", 689, 100, ("low{:05d}.png", "normal{:05d}.png"), "digits")),
            Layout("retinexformer", _lol("LOLv2/Real_captured", 689, 100, ("{:05d}.png", "{:05d}.png"), "digits")),
        ),
        rules="Names are `low00690.png` and `normal00690.png`, or equal ones in Retinexformer's copy; pairs by number",
    ),
    PublicSet(
        name="lol_v2_synthetic",
        title="LOL-v2-synthetic",
        task="low light",
        protocol="lowlight_rgb",
        degradation="low_light",
        licence=NOT_STATED,
        source="the LOL-v2 download, or Retinexformer's copy",
        layouts=(Layout("original", _lol("LOLv2/Synthetic", 900, 100, ("r{:08x}t.png", "r{:08x}t.png"), "stem")),),
    ),
    PublicSet(
        name="sid",
        title="SID",
        task="low light",
        protocol="lowlight_rgb",
        degradation="low_light",
        licence=NOT_STATED,
        source="arrays made of the Sony part of See-in-the-Dark, as SNR-aware and Retinexformer distribute them",
        layouts=(
            Layout(
                "arrays",
                {
                    "train": _sid(FirstDigit("02"), 2099, ("00001", "20003")),
                    "test": _sid(FirstDigit("1"), 598, ("10003", "10034")),
                    "test/aligned": _sid(FirstDigit("1"), None, (), SID_SHIFTED),
                },
            ),
        ),
        rules="The first digit of a scene splits: 0 and 2 train, 1 test; the first original of a scene is that of all "
        "its inputs; all at 960x512. `test/aligned` leaves out the three scenes whose originals are shifted",
        per_scene=True,
    ),
    _smid(
        "smid",
        None,
        True,
        "Retinexformer's form: all frames at 960x512. Test scenes by `test_list.txt` (49 of them, known here, too)",
    ),
    _smid("smid_first30", 30, False, "SNR-aware's form: the first 30 frames of a test scene, not resized"),
    PublicSet(
        name="rain13k",
        title="Rain13K",
        task="deraining",
        protocol="derain_y",
        degradation="rain",
        licence=NOT_STATED,
        source="the training archive of Restormer and MPRNet, a mixture of earlier sets",
        layouts=(
            Layout(
                "restormer",
                {
                    "train": Folders("Rain13K/input", "Rain13K/target", "train", 13_711, names=("{}.jpg", "{}.jpg")),
                    "test": Folders("Rain100L/input", "Rain100L/target", "test", 100, names=("{}.png", "{}.png")),
                },
            ),
        ),
        rules="Papers say 13,712; one picture of another size was taken out of the download. Its `test` is Rain100L, "
        "on which Restormer validates",
    ),
    _derain("test100", "Test100", 98, "{}.png", "98 pairs, not 100, are what papers measure"),
    _derain("rain100h", "Rain100H", 100, "norain-{}.png", "An older one has 200 other pairs"),
    _derain("rain100l", "Rain100L", 100, "norain-{}.png", "An older one has 200 other pairs"),
    _derain("test2800", "Test2800", 2800, "{}_1.jpg", "An old upload has a stray `926_10(1).jpg`"),
    _derain("test1200", "Test1200", 1200, "{}.jpg"),
    PublicSet(
        name="gopro",
        title="GoPro",
        task="motion deblurring",
        protocol="gopro_matlab",
        degradation="motion_blur",
        licence=NOT_STATED,
        source="GOPRO_Large of its authors, or the archives of Restormer",
        layouts=(
            Layout(
                "original",
                {
                    "train": Folders("train/*/blur", "train/*/sharp", "GOPRO_Large", 2103, names=("{:06d}.png",) * 2),
                    "test": Folders("test/*/blur", "test/*/sharp", "GOPRO_Large", 1111, names=("{:06d}.png",) * 2),
                },
            ),
            Layout(
                "restormer",
                {
                    **_GOPRO_TRAIN,
                    "test": Folders("input", "target", "test/GoPro", 1111, names=("GOPR0384_11_00-{:06d}.png",) * 2),
                },
            ),
        ),
        rules="Of the raw set `blur` is taken, never `blur_gamma`; Restormer trains on crops of 512",
        per_scene=True,
    ),
    PublicSet(
        name="hide",
        title="HIDE",
        task="motion deblurring",
        protocol="gopro_matlab",
        degradation="motion_blur",
        licence=NOT_STATED,
        source="the test archive of Restormer",
        layouts=(
            Layout(
                "restormer",
                {
                    "train": Folders("GoPro/input_crops", "GoPro/target_crops", "train", names=("{:06d}-1.png",) * 2),
                    "test": Folders("input", "target", "test/HIDE", 2025, names=("{}fromGOPR1081.png",) * 2),
                },
            ),
        ),
        rules="Trained on GoPro, as the field does",
    ),
    _realblur("J"),
    _realblur("R"),
    _dpdd("dpdd_single", dual=False),
    _dpdd("dpdd_dual", dual=True),
    PublicSet(
        name="jnb",
        title="JNB",
        task="defocus deblurring",
        protocol=None,
        degradation="defocus",
        licence=NOT_STATED,
        source="photographs with masks of their blur, of Just Noticeable Blur; there are no sharp ones",
        layouts=(Layout("pictures", {"test": Loose("image", "JNB")}), Layout("loose", {"test": Loose()})),
        rules="EBDB, beside it in papers' tables, is a method, not a set",
    ),
    PublicSet(
        name="no_reference",
        title="pictures without originals",
        task="defocus deblurring",
        protocol=None,
        degradation="defocus",
        licence="yours",
        source="any folder of pictures",
        layouts=(Layout("loose", {"test": Loose()}),),
    ),
)
SETS: dict[str, PublicSet] = {of.name: of for of in _EVERY}
