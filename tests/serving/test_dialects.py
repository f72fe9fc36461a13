"""The dialects of other tools: OpenAI's own client, and what theirs send."""

from __future__ import annotations

import json

import openai
import pytest
import scripted

from seg_jax.serving import faults, label_studio
from seg_jax.serving.limits import Limits

TOKEN = "a token of many characters"
CONFIG = """
<View><Image name="picture" value="$photo"/>
<PolygonLabels name="outline" toName="picture"><Label value="star"/><Label value="ring"/>
</PolygonLabels></View>
"""
"""A labelling interface."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upload")
    (folder / "3").mkdir()
    (folder / "3" / "a b.png").write_bytes(scripted.picture())
    limits = Limits(answers=4)
    with (
        pytest.MonkeyPatch.context() as patch,
        scripted.serve(patch, limits=limits, token=TOKEN, images=folder) as found,
    ):
        yield found


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key=TOKEN, max_retries=0) as made:
        yield made


def messages(text="Outline the red star.", image=None, *, pictures=1):
    picture = {"type": "image_url", "image_url": {"url": image or scripted.data_uri()}}
    return [{"role": "user", "content": [*[picture] * pictures, {"type": "text", "text": text}]}]


# OpenAI.


def test_the_client_of_openai_gets_an_answer(client):
    told = client.chat.completions.create(model="tiny", messages=messages(), temperature=0)
    (choice,) = told.choices
    assert (choice.message.content, choice.finish_reason) == (scripted.SQUARE, "stop")
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    assert told.usage.prompt_tokens > 10
    assert told.id.startswith("chatcmpl-")


def test_the_client_of_openai_gets_several_answers(client, served, monkeypatch):
    write = staticmethod(lambda question, wanted: f"{wanted.number} {wanted.temperature:.1f}.")
    monkeypatch.setattr(scripted.Batch, "script", write)
    system = [{"role": "system", "content": "Be brief."}]
    told = client.chat.completions.create(
        model="tiny", messages=system + messages(), n=3, temperature=0.5, seed=7, max_tokens=50
    )
    assert [one.message.content for one in told.choices] == ["0 0.5.", "1 0.5.", "2 0.5."]
    asked, wanted = served.batch.placed[-1]
    assert (wanted.seed, wanted.max_tokens) == (7, 50)
    assert "Be brief." in asked


def test_the_client_of_openai_reads_a_stream(client):
    stream = client.chat.completions.create(
        model="tiny", messages=messages(), n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, ends, usage, chunks = {0: "", 1: ""}, {}, None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            chunks += 1
            texts[choice.index] += choice.delta.content or ""
            ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert texts == {0: scripted.SQUARE, 1: scripted.SQUARE}
    assert ends == {0: "stop", 1: "stop"}
    assert chunks > 4
    assert usage.completion_tokens >= 20


def test_the_client_of_openai_lists_the_model(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "seg-jax"
    with pytest.raises(openai.BadRequestError, match="expected 'tiny', got 'gpt'"):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"messages": messages(image="https://example.com/a.png")}, "no address is fetched"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "expected one image_url"),
        ({"messages": messages(pictures=2)}, "expected one image_url and a text, got 2 and 1"),
        ({"messages": messages() + messages()}, "one of the user"),
        ({"messages": [{"role": "assistant", "content": "hm"}]}, "role"),
        ({"model": "gpt"}, "expected 'tiny', got 'gpt'"),
        ({"n": 5}, "n: expected at most 4, got 5"),
        ({"n": 0}, "request, n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0.5}, "top_p: expected it left out, got 0.5"),
        ({"stop": ["]"]}, "stop: expected it left out"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: expected"),
        ({"logprobs": True}, "logprobs: expected it left out"),
        ({"messages": messages(text="x " * 900)}, "tokens in the prompt"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_openai_has_and_we_do_not_is_refused(client, change, say, stream):
    asked = {"model": "tiny", "messages": messages(), "stream": stream} | change
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked)
    assert say in caught.value.message
    assert caught.value.status_code in (400, 413)


def test_a_wrong_key_is_refused(served):
    with (
        openai.OpenAI(base_url=f"{served.address}/v1", api_key="no", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


# Label Studio.


def basic():
    import base64

    return {"Authorization": f"Basic {base64.b64encode(f'any:{TOKEN}'.encode()).decode()}"}


def predict(served, *, data, context=None):
    body = {
        "tasks": [{"id": 1, "data": data}],
        "model_version": None,
        "project": "1.1700000000",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": context},
    }
    return served.send("/predict", body, headers=basic())


def test_label_studio_sets_up_and_predicts_every_label(served):
    assert served.send("/health")[1]["status"] == "UP"
    setup = {"project": "1.17", "schema": CONFIG, "hostname": "http://ls", "access_token": "t"}
    assert served.send("/setup", setup, headers=basic())[1] == {"model_version": "tiny"}
    for name in (
        scripted.data_uri(),
        "/data/upload/3/a%20b.png",
        "/data/local-files/?d=3/a%20b.png",
    ):
        status, told, _ = predict(served, data={"photo": name})
        assert status == 200, told
        (result,) = told["results"]
        assert result["model_version"] == "tiny"
        labels = [region["value"]["polygonlabels"] for region in result["result"]]
        assert labels == [["star"], ["ring"]]
        region = result["result"][0]
        assert (region["from_name"], region["to_name"]) == ("outline", "picture")
        assert region["type"] == "polygonlabels"
        assert (region["original_width"], region["original_height"]) == (60, 40)
        assert region["value"]["points"] == [[25, 25], [75, 25], [75, 75], [25, 75]]
        assert 0 < result["score"] < 1


def test_label_studio_outlines_what_is_clicked(served):
    point = {"x": 50, "y": 50, "width": 0.4, "keypointlabels": ["ring"]}
    beside = {"x": 5, "y": 5, "keypointlabels": ["ring"]}
    context = {
        "result": [
            {"type": "keypointlabels", "value": point, "is_positive": True},
            {"type": "keypointlabels", "value": beside, "is_positive": False},
        ]
    }
    _, told, _ = predict(served, data={"photo": scripted.data_uri()}, context=context)
    (region,) = told["results"][0]["result"]
    assert region["value"]["polygonlabels"] == ["ring"]
    assert "point [0.50, 0.50]" in served.batch.placed[-1][0]
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["star"]}
    context = {"result": [{"type": "rectanglelabels", "value": box}]}
    predict(served, data={"photo": scripted.data_uri()}, context=context)
    assert "box [0.10, 0.20, 0.40, 0.60]" in served.batch.placed[-1][0]


@pytest.mark.parametrize(
    "name", ["http://ls/data/upload/3/a.png", "/data/upload/../../x.png", "/data/upload/3/c.png", 7]
)
def test_label_studio_names_no_picture_beyond_the_folder(served, name):
    status, told, _ = predict(served, data={"photo": name})
    assert status == 400
    assert "; do: " in told["error"]["message"]


@pytest.mark.parametrize(
    ("config", "say"),
    [
        ("<View", "expected XML"),
        ("<View/>", "expected <PolygonLabels>"),
        (CONFIG.replace("toName", "to"), "expected <PolygonLabels>"),
        ('<!DOCTYPE x [<!ENTITY a "aa">]><View>&a;</View>', "declares entities"),
        ("<View>" + "<a>" * 50_000, "too long"),
    ],
)
def test_interfaces_without_outlines_are_refused(config, say):
    with pytest.raises(faults.Refused, match=say):
        label_studio.interface(config)
    found = label_studio.interface(CONFIG)
    assert (found.field, found.labels) == ("photo", ("star", "ring"))


# X-AnyLabeling.


def test_x_anylabeling_lists_the_model_and_gets_shapes(served):
    head = {"Token": TOKEN, "Content-Type": "application/json"}
    told = served.send("/x-anylabeling/v1/models", headers=head)[1]
    assert [*told["data"]] == ["tiny"]
    params = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
    body = {"model": "tiny", "image": scripted.data_uri(), "params": params}
    body["params"] = params | {"text_prompt": "red star, the ring"}
    told = served.send("/x-anylabeling/v1/predict", body, headers=head)[1]
    assert told["success"] is True
    shapes = told["data"]["shapes"]
    assert [shape["label"] for shape in shapes] == ["red star", "the ring"]
    assert shapes[0]["points"] == [[15, 10], [45, 10], [45, 30], [15, 30], [15, 10]]
    assert (shapes[0]["shape_type"], shapes[0]["score"]) == ("polygon", pytest.approx(0.5))
    marks = [
        {"type": "point", "data": [30, 20], "label": 1},
        {"type": "point", "data": [1, 1], "label": 0},
        {"type": "rectangle", "data": [50, 35, 10, 5], "label": 1},
    ]
    body["params"] = params | {"marks": marks}
    (shape,) = served.send("/x-anylabeling/v1/predict", body, headers=head)[1]["data"]["shapes"]
    assert shape["label"] == "object"
    asked = [question for question, _ in served.batch.placed[-2:]]
    assert any("point [0.50, 0.50]" in question for question in asked)
    assert any("box [0.17, 0.12, 0.83, 0.88]" in question for question in asked)


def test_x_anylabeling_is_refused_in_its_own_form(served):
    head = {"Token": TOKEN}
    body = {"model": "tiny", "image": scripted.data_uri(), "params": {}}
    status, told, _ = served.send("/x-anylabeling/v1/predict", body, headers=head)
    assert (status, told["success"]) == (400, False)
    assert "names or marks" in told["error"]["message"]
    other = body | {"model": "sam"}
    assert "choose it again" in served.refuses("/x-anylabeling/v1/predict", other, headers=head)
    assert json.dumps(told)
