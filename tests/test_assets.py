"""What is fetched is what was asked for, is whole, and only with NSD's terms accepted."""

import hashlib
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest
from open_clip import get_pretrained_url
from torchvision.models import AlexNet_Weights, EfficientNet_B1_Weights, Inception_V3_Weights

from mindeye2_lite import assets, cli, doctor, encoders, paths, sdxl
from mindeye2_lite.assets import Asset, Stated, fetch, needed, state
from mindeye2_lite.config import PROFILES, Config
from mindeye2_lite.released_networks import REPOSITORIES

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path))
    return tmp_path


class FakeHub:
    """A Hub of a few bytes per file; what it sends may differ from what it states."""

    def __init__(self, sends: bytes = b"weights", states: bytes = b"weights"):
        self.sends, self.states, self.asked = sends, states, []

    def stated(self, repository: str, kind: str, file: str) -> Stated:
        return Stated(len(self.states), hashlib.sha256(self.states).hexdigest())

    def download(self, repository: str, kind: str, file: str, folder: Path | None) -> Path:
        self.asked.append(f"{kind} {repository} {file}")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(self.sends)
        return folder / file


ONE = Asset(("train_logs/a/last.pth",), 7e-9, "released", "a model", "nsd")
FREE = Asset(
    ("config.json", "vocab.txt"), 14e-9, "captions", "words", "git", "MIT", "someone/git", "git"
)


def quietly(*chosen: Asset, hub: FakeHub, **how) -> list[Path]:
    return fetch(chosen, hub=hub, say=lambda line: None, **how)


def names(**how) -> list[str]:
    return [file for asset in needed(**how) for file in asset.files]


# -- what is needed -------------------------------------------------------------------------------


def test_lite_needs_nothing():
    assert needed(Config.lite(), subjects=range(1, 9)) == []


def test_the_light_profile_asks_for_no_low_level_network_and_the_light_checkpoint():
    files = names(config=Config.colab(), subjects=(1,))
    assert "sd_image_var_autoenc.pth" not in files
    assert not any("convnext" in file for file in files)
    logs = [file for file in files if file.startswith("train_logs")]
    assert logs == ["train_logs/multisubject_subj01_1024hid_nolow_300ep/last.pth"]


def test_only_the_files_of_the_subjects_and_stages_asked_for_are_needed():
    files = names(config=Config.paper(), subjects=(2,), stages=("data",))
    assert "betas_all_subj02_fp32_renorm.hdf5" in files
    assert not [file for file in files if "subj01" in file]
    trials = [file for file in files if file.startswith("wds/subj02/train")]
    assert len(trials) == 40 and "wds/subj02/new_test/0.tar" in files
    assert not [file for file in files if "/test/" in file]


def test_one_hour_asks_for_the_one_hour_model_and_the_pretrained_one():
    released = names(config=Config.paper(), subjects=(5,), sessions=1, stages=("released",))
    assert released == [
        "train_logs/final_multisubject_subj05/last.pth",
        "train_logs/final_subj05_pretrained_1sess_24bs/last.pth",
    ]


@pytest.mark.parametrize("bad", [{"subjects": (9,)}, {"stages": ("datas",)}])
def test_an_unknown_subject_or_stage_is_refused_in_one_line(bad):
    with pytest.raises(ValueError, match="^there is no [^\n]*choose from[^\n]*$"):
        needed(Config.paper(), **bad)


def test_betas_are_as_large_as_their_trials_and_voxels_make_them():
    sizes = {a.name: a.gigabytes for a in assets.table()}
    assert sizes["betas_all_subj01_fp32_renorm.hdf5"] == 30_000 * 15_724 * 4 / 1e9
    assert sizes["coco_images_224_float16.hdf5"] == pytest.approx(22, abs=0.05)


def test_refining_asks_for_the_stock_text_towers_where_they_are_looked_for():
    chosen = needed(Config.colab(), stages=("refinement",))
    (towers,) = [asset for asset in chosen if asset.folder == sdxl.BASE]
    assert towers.repository == REPOSITORIES[sdxl.BASE]
    parts = [name for name in sdxl.SIZES if "text" in name]
    files = {f"{p}/{file}" for p in parts for file in ("config.json", "model.fp16.safetensors")}
    assert set(towers.files) == files
    assert not towers.under_terms and towers.kind == "model"


def test_what_no_module_reads_is_fetched_on_request_only():
    usual = {asset.stage for asset in needed(Config.paper())}
    assert "refinement" in usual and not usual & {"judging", "more"}


def test_judging_asks_for_every_network_of_the_six_scores():
    chosen = [a for a in needed(Config.paper(), stages=("judging",)) if a.part == "paper-judges"]
    scores = [score for asset in chosen for score in asset.use.removeprefix("judge: ").split(", ")]
    assert scores == list(encoders.judges())
    assert all(asset.kind == "web" and asset.folder == "judges" for asset in chosen)
    for weights in (AlexNet_Weights, Inception_V3_Weights, EfficientNet_B1_Weights):
        kind = weights.DEFAULT
        (asset,) = [a for a in chosen if kind.url == f"{a.repository}/{a.name}"]
        assert asset.gigabytes == pytest.approx(kind.meta["_file_size"] * 2**20 / 1e9)
    (clip,) = [a for a in chosen if a.use == "judge: CLIP"]
    assert f"{clip.repository}/{clip.name}" == get_pretrained_url("ViT-L-14", "openai")


def test_bigg_is_not_fetched_beside_the_unclip_which_holds_the_same_tower():
    bigg = "open_clip_model.safetensors"
    for profile in (Config.colab(), Config.paper()):
        together = names(config=profile, stages=("training", "decoding"))
        assert "unclip6_epoch0_step110000.ckpt" in together and bigg not in together
        assert bigg in names(config=profile, stages=("training",))


def test_what_nothing_here_reads_is_fetched_only_when_asked_for():
    unread = names(config=Config.paper(), stages=("more",))
    assert "gnet_multisubject.pt" in unread and "evals/all_images.pt" in unread
    assert not set(unread) & set(names(config=Config.paper()))


def test_every_asset_says_what_it_is_for_and_under_which_license():
    for asset in assets.table():
        assert asset.use and asset.license and asset.gigabytes > 0
        assert asset.stage in assets.STAGES
        assert len(set(asset.files)) == len(asset.files)
        assert any(asset.part in vars(Config.of(profile)).values() for profile in PROFILES)


# -- getting it -----------------------------------------------------------------------------------


def test_nothing_is_downloaded_before_the_terms_are_accepted():
    hub = FakeHub()
    with pytest.raises(ValueError, match=r"^[^\n]*cvnlab[^\n]*--accept-nsd-terms$"):
        quietly(FREE, ONE, hub=hub)
    assert hub.asked == []


def test_what_is_not_under_nsd_s_terms_needs_no_consent(folder):
    hub = FakeHub()
    assert quietly(FREE, hub=hub) == [folder / "git" / "config.json", folder / "git" / "vocab.txt"]
    assert hub.asked == ["model someone/git config.json", "model someone/git vocab.txt"]


def test_what_is_there_and_right_is_not_fetched_or_hashed_again(folder, monkeypatch):
    hub = FakeHub()
    (path,) = quietly(ONE, hub=hub, accept_nsd_terms=True)
    assert path == folder / "train_logs/a/last.pth"
    monkeypatch.setattr(assets.hashlib, "file_digest", None)
    quietly(ONE, hub=hub, accept_nsd_terms=True)
    assert hub.asked == [f"dataset {assets.RELEASED} train_logs/a/last.pth"]


@pytest.mark.parametrize("sent", [b"weight", b"weighty"], ids=["cut short", "changed"])
def test_a_file_that_is_not_the_one_stated_is_refused_in_one_line(sent):
    with pytest.raises(ValueError, match=r"^[^\n]*last.pth is not what[^\n]*fetch it again$"):
        quietly(ONE, hub=FakeHub(sends=sent), accept_nsd_terms=True)


def test_a_damaged_file_is_fetched_again(folder):
    quietly(ONE, hub=FakeHub(), accept_nsd_terms=True)
    path = folder / "train_logs/a/last.pth"
    path.write_bytes(b"weighty")
    os.utime(path, ns=(1, 1))
    again = FakeHub()
    quietly(ONE, hub=again, accept_nsd_terms=True)
    assert len(again.asked) == 1 and path.read_bytes() == b"weights"
    assert len(json.loads((folder / assets.CHECKED).read_text())) == 1


def test_too_small_a_disk_is_noticed_before_the_download(monkeypatch):
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda folder: Usage(0, 0, 1))
    hub = FakeHub()
    with pytest.raises(OSError, match="^[^\n]*GB to fetch, 0 GB free[^\n]*$"):
        quietly(ONE, hub=hub, accept_nsd_terms=True)
    assert hub.asked == []


def on_the_web(source: Path, name: str, content: bytes = b"weights") -> Asset:
    """A file of another host than the Hub; the host is a folder."""
    source.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(content)
    return Asset((name,), 7e-9, "judging", "a judge", "judges", "MIT", source.as_uri(), "judges")


DIGEST = hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("place", ["", DIGEST], ids=["name", "folder"])
def test_a_file_on_the_web_is_checked_against_the_hash_in_its_address(
    place, folder, tmp_path_factory
):
    source = tmp_path_factory.mktemp("host") / place
    name = "judge.pth" if place else f"judge-{DIGEST[:8]}.pth"
    right, said = on_the_web(source, name), []
    assert fetch([right], say=said.append) == [folder / "judges" / name]
    assert (folder / "judges" / name).read_bytes() == b"weights"
    fetch([right], say=said.append)
    assert [line.split()[0] for line in said] == ["fetching", "here"]
    (folder / "judges" / name).unlink()
    wrong = on_the_web(source, name, b"weighty")
    with pytest.raises(ValueError, match=rf"^[^\n]*{name} is not what [^\n]*fetch it again$"):
        fetch([wrong], say=said.append)
    (source / name).unlink()
    (folder / "judges" / name).unlink()
    with pytest.raises(OSError, match=f"^cannot fetch {name} of [^\n]*$"):
        fetch([wrong], say=said.append)


def test_no_hash_is_made_up_where_none_is_known(tmp_path):
    asset = on_the_web(tmp_path / "host", "swav_800ep_pretrain.pth.tar")
    stated = assets.Web().stated(asset.repository, asset.kind, asset.name)
    assert stated == Stated(7, None)


def test_a_hub_that_does_not_answer_costs_one_line():
    class Silent(FakeHub):
        def stated(self, *where):
            raise ConnectionError("no route\n to host")

    with pytest.raises(OSError, match="^cannot fetch train_logs/a/last.pth of [^\n]*no route to"):
        quietly(ONE, hub=Silent(), accept_nsd_terms=True)


def test_without_a_network_the_real_hub_costs_one_line_too(monkeypatch):
    closed = "http://127.0.0.1:9/file"  # refuses at once
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_, **__: closed)
    with pytest.raises(OSError, match=r"^cannot fetch [^\n]*refused[^\n]*$"):
        fetch([ONE], accept_nsd_terms=True, say=lambda line: None)

    class Lost(Exception):
        """As httpx's errors, which are no OSError."""

    def downloads(*_, **__):
        raise Lost("connection lost")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", downloads)
    with pytest.raises(OSError, match="connection lost"):
        assets.HuggingFace().download("a/b", "model", "c", None)


def test_the_state_of_an_asset_is_missing_here_or_wrong(folder):
    large = Asset(("large.bin",), 0.05, "data", "numbers", "nsd")
    assert state(large) == "missing"
    for size, said in ((50_000_000, "here"), (1_000_000, "wrong")):
        with (folder / "large.bin").open("wb") as file:
            file.truncate(size)
        assert state(large) == said


# -- the commands ---------------------------------------------------------------------------------


def test_fetch_lists_everything_without_asking_anybody(capsys):
    assert cli.main(["fetch"]) == 0
    said = capsys.readouterr().out
    assert "unclip6_epoch0_step110000.ckpt" in said and "MIT" in said and "missing" in said
    assert len(said.splitlines()) == len(assets.table()) + 1


def test_fetch_refuses_in_one_line_and_lite_needs_nothing(capsys):
    assert cli.main(["fetch", "--profile", "colab", "--subjects", "1"]) == 1
    said = capsys.readouterr().err
    assert assets.TERMS in said and said.count("\n") == 1
    assert cli.main(["fetch", "--profile", "lite"]) == 0
    assert "needs nothing" in capsys.readouterr().out


def test_the_doctor_says_what_each_profile_lacks(folder):
    report = doctor.report()
    assert report["profile lite"].startswith("ready")
    assert "assets missing" in report["profile paper"] and "fetch" in report["profile paper"]
    assert report["assets"] == str(paths.assets()) == str(folder)
