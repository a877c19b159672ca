"""Common Chinese characters of equal pinyin, tones aside, and of similar shape; English homophones.

A small table of our own: what people type by mistake, not a dictionary. A character stands in one
group of a table only.
"""

from __future__ import annotations

# One group per syllable.
_SAME_SOUND = """
的地得德 在再载 他她它塔 是事市式试世视室适 做作坐座 已以一衣医依 有又友右由油 里理力立利离李礼
到道倒刀 时实十石食识 会回汇惠 和合河何喝盒 这着者折 为位未味卫维围 问文温闻 请情清轻青晴
吗妈马码骂 吧把八爸 哪那拿 什甚神身深 没每美妹 想向像象响相香 要药咬 我握 你尼 来莱 去取区
说硕 看刊砍 知之只直指纸 谢写些 号好浩 多夺 少烧稍 买卖麦 钱前千签 元员原圆园远 快块筷 慢满
几机鸡级急己 个各歌格 天添甜田 年念 月越约 明名命鸣 上商尚 下夏吓 中钟种重 国过果锅
家加价假佳 学雪 生声升胜省 工公共供功 司思四死丝 电店点典 话化花画华 网往王望忘 字自子紫
单丹担但 订定顶 发法罚 货获火或活 退推腿 款宽 收手首守受售 包保报宝 送松宋 件间见建减健
"""

# Easily taken for one another.
_SAME_SHAPE = """
己已巳 末未 土士 人入 日曰 大太犬 天夫 午牛 干千 王玉 田由甲申 木本 目自 刀力 儿几 休体
晴睛 侯候 辨辩 拨拔 密蜜 折拆 壁璧 历厉 今令 处外 办为 农衣 贝见 兔免 鸟乌 间问 住往 这还
"""

ENGLISH = (
    ("your", "you're"), ("their", "there", "they're"), ("its", "it's"), ("to", "too", "two"),
    ("then", "than"), ("where", "wear", "were"), ("here", "hear"), ("know", "no"), ("new", "knew"),
    ("right", "write"), ("buy", "by", "bye"), ("for", "four"), ("one", "won"), ("wait", "weight"),
    ("week", "weak"), ("see", "sea"), ("be", "bee"), ("our", "hour"), ("would", "wood"),
    ("check", "cheque"), ("cash", "cache"), ("whether", "weather"), ("which", "witch"),
    ("sent", "cent", "scent"), ("piece", "peace"), ("paid", "payed"), ("mail", "male"),
    ("brake", "break"), ("accept", "except"), ("affect", "effect"), ("lose", "loose"),
    ("past", "passed"), ("sell", "cell"), ("site", "sight"), ("whole", "hole"),
    ("meet", "meat"), ("made", "maid"), ("way", "weigh"), ("some", "sum"), ("through", "threw"),
    ("who's", "whose"), ("need", "knead"),
)  # fmt: skip


def _partners(text: str) -> dict[str, str]:
    """Each character → the others of its group; a character in two groups keeps the first."""
    found: dict[str, str] = {}
    for group in text.split():
        for character in group:
            others = group.replace(character, "")
            if others:
                found.setdefault(character, others)
    return found


SOUNDS_LIKE = _partners(_SAME_SOUND)
LOOKS_LIKE = _partners(_SAME_SHAPE)
WORDS_LIKE = {word: [w for w in group if w != word] for group in ENGLISH for word in group}
