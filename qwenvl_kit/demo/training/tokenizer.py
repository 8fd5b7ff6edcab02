"""Build a Qwen2 tokenizer: byte-level BPE in which every word of the drawn worlds is one token.

All worlds share one vocabulary, so training can continue in another world. Bytes are its base, so it can tokenise any
text.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from qwenvl_kit.demo.scenes import words

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)

#: The chat template of Qwen2.5-VL.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Numbers with a token of their own. The model writes coordinates with them. Texts are never split into them, since the
#: pattern of Qwen2 isolates digits.
N_NUMBERS = 200

_LARGEST_VOCABULARY = 4096
_MULTIPLE = 128

# Pieces of the sentence templates; "~" stands for the space before a word, which belongs to its token.
_ZH_PIECES = """
请给出 这张图片 的详细描述 请描述 图中 有什么 有几个 个物体 背景 背景上有 的物体 。 是什么 是什么颜色 是什么形状 在哪里
吗 ？ ：一个 没有物体 没有 有 个 物体 写着 数字 是几 坐标 以 格式 输出 位置 的
椭圆形 长方形 五边形 六边形 月牙形 箭头 灰色 中等的
"""
_EN_PIECES = """
system user assistant You ~are ~a ~an ~helpful ~assistant Describe ~this ~image ~in ~detail What ~is ~the ~color ~colour
~background ~shape ~at Where Is ~there How ~many ~objects ~object ~on Nothing Yes No A . ? : , One
~number ~digit ~with ~written ~Output ~JSON ~coordinates ~its ~it ~has ~and
[{" bbox ": ~" label "} ] ~[ "}, ~{" _ []
"""
_ZH_JSON = """
检测 指出 图中所有的 图中所有的物体 ，以JSON格式输出坐标 、
"""
_EN_JSON = """
Describe ~the ~image ~picture ~do ~you ~see ~as ~JSON ~with ~these ~fields whole ~whole ~number ~text text ~list ~of ~or
~one ~only ~in Answer Detect Point ~to ~every ~output ~coordinates ~format
count background objects object shape shapes colour colours color colors size place places
~shapes ~colours ~colors ~places ~objects label bbox point json ~shape ~colour ~color ~size ~place ~count ~background
{" [{" ":~ ": ~" ", "} "}, "}] "}]} ]} ], } ]~ [" "] ~[{" ~[" ~{" ~[ [ ] ), ~( ): : - ` ```
"""
_JSON_LINES = (
    *("[\n", "[]\n", "]\n", '"},\n', '"}\n', ":\n", "),\n", ").\n", ")\n", '"\n', '")\n'),
    *('"),', '",', '")', '"]}', '"],', '"}],'),
)
_EN_MORE = ("ellipse", "rectangle", "pentagon", "hexagon", "crescent", "arrow", "medium")


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Build the tokenizer; ids are the same each time."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=_LARGEST_VOCABULARY,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator(_words(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    for number in range(10, N_NUMBERS):
        vocabulary[str(number)] = len(vocabulary)
    built = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )
    built.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    return built


def _words() -> list[str]:
    """List the strings that become one token each, in the form of the pre-tokenizer."""
    names = words()
    places = [f"。{name}" for name in names["zh"]]
    english = [part for name in [*names["en"], *_EN_MORE] for part in name.split()]
    return [
        *names["zh"],
        *places,
        *_ZH_PIECES.split(),
        *(piece.replace("~", " ") for piece in _EN_PIECES.split()),
        *[f" {word}" for word in english],
        *[f" {word.capitalize()}" for word in english],
        *[word.capitalize() for word in english],
        *_ZH_JSON.split(),
        *(piece.replace("~", " ") for piece in _EN_JSON.split()),
        *_JSON_LINES,
        *english,
    ]


def number_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token of each number from 0 on."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[str(number)] for number in range(N_NUMBERS)]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of rows of the embedding table: all tokens, rounded up."""
    return -(-len(tokenizer) // _MULTIPLE) * _MULTIPLE
