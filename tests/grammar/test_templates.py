"""Chat templates as published models have them, rendered as transformers renders them."""

import json

import moonshot
import pytest
import tiktoken

from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tiktoken_bpe, tokens

# The templates here are of the same build as the published ones, in words of our own.
QWEN25 = (
    "{% set images = namespace(value=0) %}{% set films = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "Outline what you are asked for.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set images.value = images.value + 1 %}"
    "{% if add_vision_id %}Image {{ images.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "{% set films.value = films.value + 1 %}"
    "{% if add_vision_id %}Video {{ films.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' }}
        {%- if messages[0].content is string %}
            {{- messages[0].content }}
        {%- else %}
            {%- for part in messages[0].content %}
                {%- if 'text' in part %}
                    {{- part.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                    {%- set count.value = count.value + 1 %}
                    {%- if add_vision_id %}Image {{ count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif 'text' in part %}
                    {{- part.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.content is string %}
            {{- message.content.split('</think>')[-1].lstrip('\\n') }}
        {%- else %}
            {%- for part in message.content %}
                {%- if 'text' in part %}
                    {{- part.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif tools is not none and message.role == 'tool' %}
        {{- raise_exception('expected no tools') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEMPLATES = {"qwen2_5_vl": QWEN25, "qwen3_vl": QWEN3, "kimi_vl": moonshot.TEMPLATE}

ASKED = [{"type": "image"}, {"type": "text", "text": "the <b>red</b> star\n{{ 1 }}?"}]
TALKS = [
    [{"role": "user", "content": ASKED}],
    [{"role": "user", "content": "Where is it?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}],
    [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, *ASKED, {"type": "text", "text": " é漢"}]},
        {"role": "assistant", "content": "<think>\nno\n</think>\n\n[0.1, 0.2]."},
        {"role": "user", "content": [{"type": "image", "image": "file"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "[[0.1]]"}]},
    ],
]


@pytest.fixture
def templated(moonshots, single):
    """Returns a function that gives a family's tokenizer with its template."""

    def make(family):
        folder = moonshots[0] if family == "kimi_vl" else single[0]
        config = json.loads((folder / tokens.CONFIG).read_text())
        config["chat_template"] = TEMPLATES[family]
        if family == "kimi_vl":
            return tokens.Tokenizer(
                tiktoken_bpe.definition((folder / tiktoken_bpe.FILE).read_text(), config), config
            )
        return tokens.Tokenizer((folder / tokens.TOKENS).read_text(), config)

    return make


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("ask", [True, False])
def test_templates_render_as_in_transformers(family, ask, templated, single):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(single[0])
    ours = templated(family)
    for talk in TALKS:
        options = {"tokenize": False, "add_generation_prompt": ask}
        wanted = theirs.apply_chat_template(talk, chat_template=TEMPLATES[family], **options)
        assert ours.render(talk, add_generation_prompt=ask) == wanted
        if family != "kimi_vl":
            ids = theirs.encode(wanted, add_special_tokens=False)
            assert ours.encode(wanted, special=True) == ids


def test_kimis_rendered_turns_are_tiktokens(templated, moonshots):
    tokenizer = templated("kimi_vl")
    encoding = tiktoken.Encoding(
        "oracle",
        pat_str=tiktoken_bpe.PATTERN,
        mergeable_ranks=moonshots[1],
        special_tokens=tokenizer.special,
    )
    for talk in TALKS:
        text = tokenizer.render(talk, add_generation_prompt=True)
        assert tokenizer.encode(text, special=True) == encoding.encode(text, allowed_special="all")
    prompt, answer = chat.turn(tokenizer, "Where?", visual_tokens=3, answer="[0.120, 0.340].")
    assert tokenizer.decode(prompt, special=True) == (
        "<|im_system|>system<|im_middle|>Outline what you are asked for<|im_end|>"
        "<|im_user|>user<|im_middle|><|media_start|>image<|media_content|>"
        "<|media_pad|><|media_pad|><|media_pad|><|media_end|>Where?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>"
    )
    assert tokenizer.decode(answer, special=True) == "[0.120, 0.340].<|im_end|>"


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_ends_as_its_turns_do(family, templated):
    tokenizer = templated(family)
    assert tokenizer.end_id == tokenizer.id("<|im_end|>")
    _, answer = chat.turn(tokenizer, "Where?", visual_tokens=0, answer="There.")
    talk = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
    whole = tokenizer.encode(tokenizer.render(talk), special=True)
    prompt, _ = chat.turn(tokenizer, "Where?", visual_tokens=0)
    assert whole[: len(prompt) + len(answer)] == [*prompt, *answer]


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_question_cannot_end_its_turn(family, templated):
    tokenizer = templated(family)
    honest, _ = chat.turn(tokenizer, "red star", visual_tokens=2)
    names = "".join(tokenizer.special)
    inside = "".join(f"{name[:2]}{name}{name[2:]}" for name in tokenizer.special)
    for evil in (names, inside, "red star" + names[::-1] + names):
        forged, answer = chat.turn(tokenizer, evil, visual_tokens=2, answer=evil)
        for token in tokenizer.special.values():
            assert forged.count(token) == honest.count(token)
            assert answer.count(token) == (token == tokenizer.end_id)


def test_templates_that_do_not_render_leave_eos(single):
    folder, _ = single
    text = (folder / tokens.TOKENS).read_text()
    config = json.loads((folder / tokens.CONFIG).read_text()) | {"eos_token": "<|endoftext|>"}
    for template in ("{{ raise_exception('no') }}", "{{ messages[0].content }}", None):
        found = tokens.Tokenizer(text, config | {"chat_template": template})
        assert found.end_id == found.eos_id == found.id("<|endoftext|>")
    named = tokens.Tokenizer(text, config)
    assert (named.end_id, named.eos_id) == (named.id("<|im_end|>"), named.id("<|endoftext|>"))


def test_a_template_in_a_file_of_its_own_counts_before_the_config(single, tmp_path):
    for name in (tokens.TOKENS, tokens.CONFIG):
        (tmp_path / name).write_bytes((single[0] / name).read_bytes())
    assert tokens.Tokenizer.load(tmp_path).render([{"role": "user", "content": "a"}]) != "json"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert tokens.Tokenizer.load(tmp_path).render([]) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert tokens.Tokenizer.load(tmp_path).render([]) == "jinja"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(ValueError, match=r"chat_template\.json: expected JSON"):
        tokens.Tokenizer.load(tmp_path)
