"""Sites, encoders, and networks made of them."""

import copy
import itertools

import pytest
import small
import torch
from small import MULTILABEL, SIZE, make_network, part

from stssl.base.errors import ConfigError
from stssl.models import ENCODERS, INJECTIONS, EncoderConfig, InjectionConfig, check_fit

IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
NAN = torch.nan
PLACES = torch.tensor([[48.1, 11.6, 172, 10], [NAN, NAN, 20, NAN], [-33.9, 151.2, NAN, NAN], [NAN] * 4])
RESNET = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 4, 8, 8]}}
SITES = [name for name in INJECTIONS if name != "none"]


def network(site="token", encoder="raw", role="teacher", seed=0, **changes):
    torch.manual_seed(seed)
    options = changes.pop("options", {})
    settings = changes.pop("encoder_options", {})
    return make_network(
        MULTILABEL,
        role,
        injection=part(InjectionConfig, site, **options),
        encoder=part(EncoderConfig, encoder, **settings),
        **changes,
    ).eval()


@pytest.mark.parametrize(("encoder", "site"), list(itertools.product(ENCODERS, SITES)))
def test_any_encoder_fits_any_site_and_every_parameter_gets_a_gradient(encoder, site):
    teacher = network(site, encoder).train()
    prediction = teacher(IMAGES, PLACES)
    (prediction.logits.sum() + prediction.context.sum()).backward()
    for name, parameter in teacher.named_parameters():
        if not parameter.requires_grad:  # frozen, as GeoCLIP's location encoder is by default
            assert name.startswith("encoder.location."), name
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("site", ["late", "film"])
@pytest.mark.parametrize(
    "backbone",
    [
        RESNET,
        {
            "backbone": "convnext_atto",
            "backbone_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]},
            "image_size": 32,
        },
    ],
    ids=["resnet", "convnext"],
)
def test_sites_of_convolutional_backbones(site, backbone):
    teacher = network(site, **backbone)
    size = backbone.get("image_size", SIZE)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        for parameter in (*teacher.site.parameters(), *teacher.backbone.get_classifier().parameters()):
            parameter.add_(0.1)
    logits = teacher(images, PLACES[:2]).logits
    assert not torch.allclose(logits, teacher(images, PLACES[2:]).logits)


@pytest.mark.parametrize("site", ["class_add", "token_add", "film", "cross_attention", "late"])
@pytest.mark.parametrize("backbone", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_other_transformers_take_all_sites_but_the_token(site, backbone):
    settings = {"backbone": backbone, "backbone_args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2}}
    teacher = network(site, **settings)
    assert torch.isfinite(teacher(IMAGES, PLACES).logits).all()
    with pytest.raises(ConfigError, match="plain vision transformer"):
        network("token", **settings)


@pytest.mark.parametrize("site", ["film", "cross_attention", "late"])
def test_sites_that_start_as_the_identity_do(site):
    teacher = network(site)
    plain = network(site, role="plain")
    plain.backbone.load_state_dict(without_head(teacher), strict=False)
    take_head(plain, teacher)
    # Exactly; a wider head may round its sum in another order.
    tolerance = 1e-6 if site == "late" else 0.0
    torch.testing.assert_close(plain(IMAGES).logits, teacher(IMAGES, PLACES).logits, atol=tolerance, rtol=0)


@pytest.mark.parametrize("site", ["token", "class_add", "token_add"])
def test_control_other_sites_do_not(site):
    teacher = network(site)
    plain = network(site, role="plain")
    plain.backbone.load_state_dict(without_head(teacher), strict=False)
    take_head(plain, teacher)
    assert not torch.allclose(plain(IMAGES).logits, teacher(IMAGES, PLACES).logits)


def without_head(teacher):
    return {key: value for key, value in teacher.backbone.state_dict().items() if not key.startswith("head")}


def take_head(plain, teacher):
    head = teacher.backbone.get_classifier()
    plain.backbone.head.weight.data = head.weight.data[:, : plain.backbone.num_features].clone()
    plain.backbone.head.bias.data = head.bias.data.clone()


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_missing_fields_have_the_same_context_whatever_the_rest_holds(encoder):
    """A row's place does not matter where it is missing in part, and its date neither."""
    made = network(encoder=encoder).encoder
    half = torch.tensor([[48.0, NAN, 172, NAN], [NAN, 11.0, 172, NAN], [NAN, NAN, 172, NAN]])
    contexts = made(half)
    assert torch.isfinite(contexts).all()
    torch.testing.assert_close(contexts[0], contexts[2])
    torch.testing.assert_close(contexts[1], contexts[2])
    assert not torch.allclose(contexts[0], made(torch.tensor([[48.0, 11.0, 172, NAN]]))[0])


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_switched_off_groups_are_always_absent(encoder):
    blind = network(encoder=encoder, encoder_options={"place": False, "date": False}).encoder
    contexts = blind(PLACES)
    assert torch.equal(contexts, contexts[:1].expand_as(contexts))
    dateless = network(encoder=encoder, encoder_options={"date": False}).encoder
    other = PLACES.clone()
    other[:, 2:] = 300.0
    assert torch.equal(dateless(PLACES), dateless(other))


def test_dropout_drops_in_passes_that_learn_only():
    encoder = network(encoder_options={"dropout": 1.0}).encoder
    absent = encoder(torch.full((4, 4), NAN))
    assert not torch.allclose(encoder(PLACES), absent)
    encoder.train()
    assert torch.equal(encoder(PLACES), absent)
    with torch.no_grad():
        assert not torch.allclose(encoder(PLACES), absent)


def test_a_student_is_blind_and_carries_a_token_only_to_be_distilled():
    student = network(role="student")
    assert torch.equal(student(IMAGES, PLACES).logits, student(IMAGES, None).logits)
    assert student.encoder is None and student.site.own_token
    assert not network(role="student", distill=False).site.own_token
    assert not network(role="plain").site.own_token


@pytest.mark.parametrize("site", ["film", "late"])
def test_a_student_projects_to_the_teachers_context(site):
    teacher, student = network(site), network(site, role="student")
    assert teacher(IMAGES, PLACES).context.shape == student(IMAGES).context.shape


def test_without_a_site_the_teacher_is_blind_too():
    teacher = network("none")
    assert torch.equal(teacher(IMAGES, PLACES).logits, teacher(IMAGES, None).logits)
    assert teacher.encoder is None


def test_a_network_without_metadata_needs_no_fitting_site():
    assert network("token", role="plain", **RESNET)(IMAGES).logits.shape == (4, 5)


def test_copies_do_not_share_sites():
    teacher = network("film")
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in other.site.parameters():
            parameter.add_(0.5)
    before = teacher(IMAGES, PLACES).logits
    assert not torch.allclose(before, other(IMAGES, PLACES).logits)
    assert torch.equal(before, teacher(IMAGES, PLACES).logits)


def test_a_token_may_enter_later():
    early, late = (network(options={"block": block}) for block in (0, 1))
    late.load_state_dict(early.state_dict())
    assert not torch.allclose(early(IMAGES, PLACES).logits, late(IMAGES, PLACES).logits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"site": "token", **RESNET}, r"'token' needs a plain vision transformer.*film, late, none"),
        ({"site": "cross_attention", **RESNET}, r"'cross_attention' needs a vision transformer"),
        ({"site": "token", "options": {"block": 2}}, r"block: 2, but the backbone has blocks 0 to 1"),
        (
            {"site": "class_add", "backbone_args": small.VIT | {"class_token": False, "global_pool": "avg"}},
            r"no.* Try token_add",
        ),
        ({"encoder_options": {"standardized": True}}, r"no places to standardize by"),
        ({"weights": "somewhere"}, r"none, imagenet, timm:TAG"),
        ({"backbone": "resnet5"}, r"no 'resnet5'. Near: .*resnet"),
        ({"backbone_args": {"depht": 2}}, r"backbone_args do not fit"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        network(**changes)


def test_a_class_token_that_joins_late_cannot_be_added_to():
    settings = {"backbone_args": {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}}
    with pytest.raises(ConfigError, match="class_add needs a class token"):
        network("class_add", backbone="cait_xxs24_224", **settings)
    network("token_add", backbone="cait_xxs24_224", **settings)


def test_film_scales_channels_of_maps_as_long_as_they_are_wide():
    """A Swin stage of 16 channels and 16 x 16 places, channels last: the shape alone does not tell them apart."""
    options = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}
    teacher = network("film", backbone="swin_tiny_patch4_window7_224", backbone_args=options, image_size=64)
    values, context = torch.ones(2, 16, 16, 16), torch.randn(2, 32)
    with torch.no_grad():
        teacher.site.layers[0].weight.normal_()
        scaled = teacher.site.block(0, values, context)
    assert torch.equal(scaled, scaled[:, :1, :1].expand_as(scaled)) and scaled[0, 0, 0].std() > 0


def test_standardized_places():
    places = torch.tensor([[40.0, 0.0, 1, 1], [50.0, 20.0, 1, 1], [NAN, NAN, 1, 1]])
    encoder = network(encoder_options={"standardized": True}, places=places).encoder
    features = encoder.place(places[:2, 0], places[:2, 1])
    torch.testing.assert_close(features.mean(0), torch.zeros(2))
    torch.testing.assert_close(features.std(0), torch.ones(2))


def test_what_fits_can_be_asked_without_building_it():
    for backbone, args in (("vit_small_patch16_224", {}), ("resnet18", {}), ("slim_resnet", {})):
        check_fit(backbone=backbone, backbone_args=args, image_size=64, injection=part(InjectionConfig, "film"))
        if "resnet" in backbone:
            with pytest.raises(ConfigError, match="plain vision transformer"):
                check_fit(
                    backbone=backbone, backbone_args=args, image_size=64, injection=part(InjectionConfig, "token")
                )


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_bf16_keeps_places_apart(encoder):
    """A twentieth of a degree is lost in bf16's eight bits."""
    made = network(encoder=encoder).encoder.eval()
    near = torch.tensor([[48.0, 11.0, 100.0, 10.0], [48.05, 11.0, 100.0, 10.0]])
    with torch.autocast("cpu", torch.bfloat16):
        one, other = made(near)
    assert one.dtype == torch.float32 and not torch.equal(one, other)
